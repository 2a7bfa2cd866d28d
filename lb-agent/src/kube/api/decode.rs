//! Bytes of a list or a watch → one reduced object at a time. The full object lives only while it is
//! reduced.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use k8s_openapi::{
    api::{
        core::v1::{Node as ApiNode, Service as ApiService},
        discovery::v1::EndpointSlice as ApiSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    kube::{
        decode::typed,
        intern::Interner,
        objects::{Key, ObjectEvent},
        reduce::{self, FieldError},
        store::List,
    },
    net::IpFamily,
};

const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(borrow, default)]
    pub(super) metadata: PageMeta<'a>,
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMeta<'a> {
    #[serde(borrow)]
    pub(super) resource_version: Cow<'a, str>,
    #[serde(borrow, rename = "continue")]
    pub(super) next: Option<Cow<'a, str>>,
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What the API server says where it refuses.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) message: String,
}

/// Where an object or a bookmark stands.
#[derive(Deserialize, Default)]
struct Head {
    #[serde(default)]
    metadata: ObjectMetaHead,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectMetaHead {
    namespace: Option<String>,
    name: Option<String>,
    resource_version: Option<String>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Default)]
pub(super) struct Bookmark {
    pub(super) version: Option<String>,
    /// The initial list is complete.
    pub(super) ends_initial: bool,
}

pub(super) struct Item {
    pub(super) key: Key,
    pub(super) version: Option<String>,
    /// Its new state, or what is wrong with it.
    pub(super) event: Result<ObjectEvent, FieldError>,
    pub(super) trigger: Option<(IpFamily, SystemTime)>,
}

pub(super) fn bookmark(text: &str) -> Bookmark {
    let head: Head = serde_json::from_str(text).unwrap_or_default();
    let annotations = head.metadata.annotations.unwrap_or_default();
    Bookmark {
        version: head.metadata.resource_version,
        ends_initial: annotations
            .get(INITIAL_END)
            .is_some_and(|end| end == "true"),
    }
}

/// An object that is there.
pub(super) fn present(list: List, text: &str, names: &mut Interner) -> Item {
    let mut json = serde_json::Deserializer::from_str(text);
    let reduced = match list {
        List::Services => typed(&mut json).and_then(|api: ApiService| {
            let key = reduce::key(&api.metadata, names)?;
            let service = reduce::service(&api, names)?.map(Arc::new);
            Ok((
                api.metadata.resource_version,
                key.clone(),
                ObjectEvent::Service(key, service),
                None,
            ))
        }),
        List::Slices => typed(&mut json).and_then(|api: ApiSlice| {
            let key = reduce::key(&api.metadata, names)?;
            let slice = reduce::slice(&api, names)?.map(Arc::new);
            let trigger = slice
                .as_ref()
                .and_then(|slice| Some((slice.family, trigger(&api.metadata)?)));
            Ok((
                api.metadata.resource_version,
                key.clone(),
                ObjectEvent::Slice(key, slice),
                trigger,
            ))
        }),
        List::Node => typed(&mut json).and_then(|api: ApiNode| {
            let node = Arc::new(reduce::node(&api)?);
            let key = Key {
                namespace: names.name(""),
                name: node.name.clone(),
            };
            Ok((
                api.metadata.resource_version,
                key,
                ObjectEvent::Node(Some(node)),
                None,
            ))
        }),
    };
    match reduced {
        Ok((version, key, event, trigger)) => Item {
            key,
            version,
            event: Ok(event),
            trigger,
        },
        Err(error) => {
            let (key, version) = head(text, names);
            Item {
                key,
                version,
                event: Err(error),
                trigger: None,
            }
        }
    }
}

/// An object that is gone.
pub(super) fn gone(list: List, text: &str, names: &mut Interner) -> Item {
    let (key, version) = head(text, names);
    let event = match list {
        List::Services => ObjectEvent::Service(key.clone(), None),
        List::Slices => ObjectEvent::Slice(key.clone(), None),
        List::Node => ObjectEvent::Node(None),
    };
    Item {
        key,
        version,
        event: Ok(event),
        trigger: None,
    }
}

fn head(text: &str, names: &mut Interner) -> (Key, Option<String>) {
    let head: Head = serde_json::from_str(text).unwrap_or_default();
    let key = Key {
        namespace: names.name(head.metadata.namespace.as_deref().unwrap_or_default()),
        name: names.name(head.metadata.name.as_deref().unwrap_or_default()),
    };
    (key, head.metadata.resource_version)
}

fn trigger(meta: &ObjectMeta) -> Option<SystemTime> {
    let text = meta.annotations.as_ref()?.get(TRIGGER)?;
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(at.into())
}
