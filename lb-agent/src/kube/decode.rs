//! The bytes of a manifest file → its objects. One fault makes the whole file a [`DecodeError`], which
//! names the document, the object and the field.

use std::{borrow::Cow, fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Endpoints, Node as ApiNode, Service as ApiService},
    discovery::v1::EndpointSlice as ApiSlice,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{
    check,
    intern::Interner,
    objects::{EndpointSlice, Key, Node, Service},
    reduce::{self, FieldError},
};

/// Kinds of objects that manifests may hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Service.
    Service,
    /// EndpointSlice.
    EndpointSlice,
    /// Endpoints.
    Endpoints,
    /// Node.
    Node,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Endpoints => "Endpoints",
            Kind::Node => "Node",
        })
    }
}

/// Which object it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, empty for a Node, and its name.
    pub key: Key,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "Node {}", self.key.name),
            kind => write!(f, "{kind} {}", self.key),
        }
    }
}

/// What an object adds to the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reduced {
    /// Nothing: a selector hides it.
    Hidden,
    /// A Service.
    Service(Arc<Service>),
    /// The slice that it is, or those that its Endpoints become.
    Slices(Box<[Arc<EndpointSlice>]>),
    /// A Node.
    Node(Arc<Node>),
}

/// One object of a file.
#[derive(Clone, Debug)]
pub struct Object {
    /// Which object.
    pub id: ObjectId,
    /// Number of its document in the file, from 1.
    pub document: usize,
    /// What it adds.
    pub reduced: Reduced,
}

/// Everything in a file.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its objects in order.
    pub objects: Vec<Object>,
    /// Kinds that are none of ours, each once.
    pub ignored: Vec<String>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is no JSON or YAML.
    #[error("document {document}: {problem}")]
    Syntax {
        /// Number of the document, from 1.
        document: usize,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// An object holds what it must not hold.
    #[error("document {document}: {object}: {source}")]
    Object {
        /// Number of the document, from 1.
        document: usize,
        /// Kind, namespace and name as far as they are known.
        object: String,
        /// The field and what is wrong with it.
        source: FieldError,
    },
}

/// Decodes a file: JSON where its name or its first byte says so, else YAML.
pub fn decode(file: &str, bytes: &[u8], names: &mut Interner) -> Result<Contents, DecodeError> {
    let mut decoder = Decoder {
        contents: Contents::default(),
        names,
        document: 0,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| DecodeError::Syntax {
        document: 1,
        problem: format!("no UTF-8 text: {error}"),
    })?;
    // JSON is YAML, too, but its own parser is several times as fast.
    if file.ends_with(".json") || text.trim_start().starts_with('{') {
        decoder.json(text)?;
    } else {
        decoder.yaml(text)?;
    }
    Ok(decoder.contents)
}

/// Lists within lists. `kubectl` writes one, and each takes some of the stack: a file of a megabyte could hold more than fit.
const MAX_LISTS: usize = 16;

/// What tells one object from another, and the items where it is a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonHead<'a> {
    #[serde(borrow)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

struct Decoder<'n> {
    contents: Contents,
    names: &'n mut Interner,
    document: usize,
}

impl Decoder<'_> {
    fn json(&mut self, text: &str) -> Result<(), DecodeError> {
        for document in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            self.document += 1;
            let document = document.map_err(|error| self.syntax(&error))?;
            self.json_object(document.get(), 0)?;
        }
        Ok(())
    }

    /// An object within so many lists.
    fn json_object(&mut self, text: &str, lists: usize) -> Result<(), DecodeError> {
        if text == "null" {
            return Ok(());
        }
        let head: JsonHead<'_> = serde_json::from_str(text).map_err(|error| self.syntax(&error))?;
        let kind = head.kind.as_deref();
        if let Some(items) = head.items.filter(|_| is_list(kind)) {
            self.may_hold_items(lists)?;
            return items
                .into_iter()
                .try_for_each(|item| self.json_object(item.get(), lists + 1));
        }
        let mut json = serde_json::Deserializer::from_str(text);
        self.object(head.api_version.as_deref(), kind, &mut json, || {
            serde_json::from_str(text).unwrap_or_default()
        })
    }

    fn yaml(&mut self, text: &str) -> Result<(), DecodeError> {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            self.document += 1;
            let value = if text.contains("<<:") {
                merged(document)
            } else {
                Value::deserialize(document)
            };
            self.yaml_object(value.map_err(|error| self.syntax(&error))?, 0)?;
        }
        Ok(())
    }

    /// An object within so many lists.
    fn yaml_object(&mut self, mut value: Value, lists: usize) -> Result<(), DecodeError> {
        if value.is_null() {
            return Ok(());
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if is_list(kind.as_deref())
            && let Some(Value::Array(items)) = value.get_mut("items").map(Value::take)
        {
            self.may_hold_items(lists)?;
            return items
                .into_iter()
                .try_for_each(|item| self.yaml_object(item, lists + 1));
        }
        self.object(api_version.as_deref(), kind.as_deref(), &value, || {
            value.clone()
        })
    }

    /// Refuses a list that lies within too many others.
    fn may_hold_items(&self, lists: usize) -> Result<(), DecodeError> {
        if lists < MAX_LISTS {
            return Ok(());
        }
        Err(self.syntax(&format_args!(
            "lists lie more than {MAX_LISTS} deep in each other; write their items into one"
        )))
    }

    /// Decodes one object of a known kind; `tree` gives it again to name it in errors.
    fn object<'de, D: serde::Deserializer<'de, Error = serde_json::Error>>(
        &mut self,
        api_version: Option<&str>,
        kind: Option<&str>,
        input: D,
        tree: impl FnOnce() -> Value,
    ) -> Result<(), DecodeError> {
        let document = self.document;
        let described = |source: FieldError| {
            let tree = tree();
            let meta = |name: &str| tree["metadata"][name].as_str();
            let kind = kind.unwrap_or("object");
            let object = match (meta("namespace"), meta("name")) {
                (namespace, Some(name)) if kind != "Node" => {
                    format!("{kind} {}/{name}", namespace.unwrap_or("default"))
                }
                (_, Some(name)) => format!("{kind} {name}"),
                (_, None) => format!("{kind} without a name"),
            };
            DecodeError::Object {
                document,
                object,
                source,
            }
        };
        let missing = |field: &str| FieldError {
            field: field.to_owned(),
            problem: "missing; every object of a manifest tells its apiVersion and kind".to_owned(),
        };
        let (Some(api_version), Some(kind_name)) = (api_version, kind) else {
            return Err(described(missing(if kind.is_some() {
                "apiVersion"
            } else {
                "kind"
            })));
        };
        let kind = match (api_version, kind_name) {
            ("v1", "Service") => Kind::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
            ("v1", "Endpoints") => Kind::Endpoints,
            ("v1", "Node") => Kind::Node,
            _ => {
                let name = format!("{api_version} {kind_name}");
                if !self.contents.ignored.contains(&name) {
                    self.contents.ignored.push(name);
                }
                return Ok(());
            }
        };
        let (id, reduced) = reduced(kind, input, self.names).map_err(described)?;
        self.contents.objects.push(Object {
            id,
            document,
            reduced,
        });
        Ok(())
    }

    fn syntax(&self, error: &impl fmt::Display) -> DecodeError {
        DecodeError::Syntax {
            document: self.document,
            problem: error.to_string(),
        }
    }
}

/// A document with its merge keys (`<<`) resolved.
fn merged(document: serde_yaml_ng::Deserializer<'_>) -> Result<Value, serde_yaml_ng::Error> {
    let mut value = serde_yaml_ng::Value::deserialize(document)?;
    value.apply_merge()?;
    serde_yaml_ng::from_value(value)
}

fn is_list(kind: Option<&str>) -> bool {
    matches!(
        kind,
        Some("List" | "ServiceList" | "EndpointSliceList" | "EndpointsList" | "NodeList")
    )
}

fn reduced<'de, D: serde::Deserializer<'de, Error = serde_json::Error>>(
    kind: Kind,
    input: D,
    names: &mut Interner,
) -> Result<(ObjectId, Reduced), FieldError> {
    let (key, reduced) = match kind {
        Kind::Service => {
            let api: ApiService = typed(input)?;
            check::service(&api)?;
            let reduced = reduce::service(&api, names)?.map_or(Reduced::Hidden, |service| {
                Reduced::Service(Arc::new(service))
            });
            (reduce::key(&api.metadata, names)?, reduced)
        }
        Kind::EndpointSlice => {
            let api: ApiSlice = typed(input)?;
            let reduced = reduce::slice(&api, names)?.map_or(Reduced::Hidden, |slice| {
                Reduced::Slices([Arc::new(slice)].into())
            });
            (reduce::key(&api.metadata, names)?, reduced)
        }
        Kind::Endpoints => {
            let api: Endpoints = typed(input)?;
            let slices = reduce::endpoints(&api, names)?;
            let reduced = Reduced::Slices(slices.into_iter().map(Arc::new).collect());
            (reduce::key(&api.metadata, names)?, reduced)
        }
        Kind::Node => {
            let api: ApiNode = typed(input)?;
            let node = Arc::new(reduce::node(&api)?);
            (
                Key {
                    namespace: names.name(""),
                    name: node.name.clone(),
                },
                Reduced::Node(node),
            )
        }
    };
    Ok((ObjectId { kind, key }, reduced))
}

/// Decodes into an API type; an error names the path of the field.
pub(super) fn typed<
    'de,
    T: DeserializeOwned,
    D: serde::Deserializer<'de, Error = serde_json::Error>,
>(
    input: D,
) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(input).map_err(|error| {
        let problem = error.inner().to_string();
        // Line and column would count from the start of the object.
        let problem = problem
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        FieldError {
            field: error.path().to_string(),
            problem,
        }
    })
}
