//! Events on objects: what a person should find beside the object itself. They are written on the
//! side, at a low rate, and never waited for. The recorder turns a repeated one into a count.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::{
    Api, Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::metrics::{ApiMetrics, EventFate};
use crate::{error::chain, kube::objects::Key};

/// Events that wait to be written; what comes on top is dropped and counted.
const QUEUE: usize = 256;
/// So many may go out at once,
const BURST: u32 = 20;
/// and then one in this time.
const REFILL: Duration = Duration::from_secs(3);
/// For one request.
const ANSWER: Duration = Duration::from_secs(10);
/// The API allows 1 KiB of text.
const TEXT_BYTES: usize = 1000;

/// The object that an Event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Service(Key),
    /// This agent's Node.
    Node,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    /// What it is about.
    pub subject: Subject,
    /// Something is wrong.
    pub is_warning: bool,
    /// One word in CamelCase: why.
    pub reason: &'static str,
    /// One word in CamelCase: what the agent did or tried.
    pub action: &'static str,
    /// A sentence for people.
    pub text: String,
}

/// Takes Events. The default one, for an agent without an API server, forgets them.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventWriter(Option<(mpsc::Sender<Note>, Arc<ApiMetrics>)>);

impl EventWriter {
    /// A writer and the queue that it fills.
    pub(crate) fn new(metrics: Arc<ApiMetrics>) -> (EventWriter, mpsc::Receiver<Note>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (EventWriter(Some((sender, metrics))), queue)
    }

    /// Whether anybody would see an Event.
    pub(crate) fn is_connected(&self) -> bool {
        self.0.is_some()
    }

    /// Writes an Event at some time, if there are not too many. Never waits.
    pub(crate) fn write(&self, note: Note) {
        if let Some((sender, metrics)) = &self.0
            && sender.try_send(note).is_err()
        {
            metrics.event(EventFate::Dropped);
        }
    }

    /// Warns at a Service.
    pub(crate) fn warn(
        &self,
        service: &Key,
        reason: &'static str,
        action: &'static str,
        text: String,
    ) {
        self.write(Note {
            subject: Subject::Service(service.clone()),
            is_warning: true,
            reason,
            action,
            text,
        });
    }
}

/// Writes what is queued.
pub(super) async fn write(
    client: Client,
    node_name: Arc<str>,
    mut queue: mpsc::Receiver<Note>,
    metrics: Arc<ApiMetrics>,
) {
    let reporter = Reporter {
        controller: "lb-agent".to_owned(),
        instance: Some(node_name.to_string()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    // When the burst will be whole again.
    let mut full_at = Instant::now();
    while let Some(note) = queue.recv().await {
        let now = Instant::now();
        full_at = full_at.max(now) + REFILL;
        if let Some(wait) = full_at.checked_sub(REFILL * BURST) {
            sleep_until(wait).await;
        }
        let written = timeout(ANSWER, publish(&client, &recorder, &node_name, note)).await;
        let fate = match written {
            Ok(Ok(())) => EventFate::Written,
            Ok(Err(error)) => {
                tracing::debug!("an Event is not written: {}", chain(&error));
                EventFate::Failed
            }
            Err(_elapsed) => EventFate::Failed,
        };
        metrics.event(fate);
    }
    // Every writer is gone; the watchers are not.
    std::future::pending::<()>().await;
}

async fn publish(
    client: &Client,
    recorder: &Recorder,
    node_name: &str,
    note: Note,
) -> Result<(), kube::Error> {
    let mut text = note.text;
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    let event = Event {
        type_: if note.is_warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: note.reason.to_owned(),
        note: Some(text),
        action: note.action.to_owned(),
        secondary: None,
    };
    let object = match note.subject {
        Subject::Service(key) => {
            // `kubectl describe` finds Events by the UID, which nothing else here needs.
            let services: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
            let uid = services.get_metadata(&key.name).await?.metadata.uid;
            ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace: Some(key.namespace.to_string()),
                name: Some(key.name.to_string()),
                uid,
                ..ObjectReference::default()
            }
        }
        Subject::Node => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node_name.to_owned()),
            // As every component of a node does.
            uid: Some(node_name.to_owned()),
            ..ObjectReference::default()
        },
    };
    recorder.publish(&event, &object).await
}
