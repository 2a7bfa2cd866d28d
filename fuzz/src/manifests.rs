//! The bytes of a manifest file → objects that the desired state takes, or a problem that names its document.

use lb_agent::kube::decode::{self, DecodeError, Reduced};
use lb_agent::kube::intern::Interner;
use lb_agent::kube::objects::ObjectEvent;
use lb_agent::kube::store::ObjectStore;

use crate::objects::{desired, node};

/// Runs one input: its first byte says what the file's name says, the rest is the file.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let file = if first & 1 == 0 { "a.yaml" } else { "a.json" };
    let contents = match decode::decode(file, bytes, &mut Interner::default()) {
        Ok(contents) => contents,
        Err(error) => return problem(&error),
    };
    let mut document = 1;
    let mut events = Vec::new();
    for object in contents.objects {
        assert!(object.document >= document, "documents are in order");
        document = object.document;
        assert!(!object.id.key.name.is_empty(), "every object has a name");
        let key = object.id.key;
        match object.reduced {
            Reduced::Hidden => {}
            Reduced::Service(service) => {
                assert_eq!(service.key, key);
                events.push(ObjectEvent::Service(key, Some(service)));
            }
            Reduced::Slices(slices) => events.extend(slices.into_iter().map(|slice| {
                assert_eq!(slice.key.namespace, key.namespace);
                ObjectEvent::Slice(slice.key.clone(), Some(slice))
            })),
            Reduced::Node(node) => events.push(ObjectEvent::Node(Some(node))),
        }
    }
    let mut store = ObjectStore::new();
    let dirty = store.initial(events);
    let mut state = desired(node());
    state.apply(&store, &dirty);
}

/// What is said of a file names the document, the object where it is known, and what is wrong with it.
fn problem(error: &DecodeError) {
    let document = match error {
        DecodeError::Syntax { document, problem } => {
            assert!(!problem.is_empty());
            *document
        }
        DecodeError::Object {
            document,
            object,
            source,
        } => {
            assert!(!object.is_empty() && !source.problem.is_empty());
            *document
        }
    };
    assert!(document >= 1, "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("document {document}: ")),
        "{text}"
    );
}
