//! The source against a scripted API server.

use std::{
    collections::BTreeSet,
    time::{Instant as StdInstant, SystemTime},
};

use tokio::{sync::Semaphore, time::timeout};

use super::{
    fake::{FakeApi, Part, Reply, until},
    *,
};
use crate::{
    exposition::Text,
    kube::{
        objects::{Key, SliceEndpoint},
        store::{Dirty, ObjectStore},
    },
};

fn meta(name: &str, version: u32) -> String {
    format!(
        r#""metadata": {{"name": "{name}", "namespace": "default", "resourceVersion": "{version}",
        "managedFields": [{{"manager": "x", "fieldsV1": {{"f:spec": {{}}}}}}]}}"#
    )
    .replace('\n', " ")
}

fn service(name: &str, port: u32, version: u32) -> String {
    let meta = meta(name, version);
    format!(
        r#"{{"apiVersion": "v1", "kind": "Service", {meta}, "spec": {{"clusterIP": "10.96.0.1", "ports": [{{"port": {port}}}]}}}}"#
    )
}

fn slice(name: &str, endpoints: usize, version: u32, annotations: &str) -> String {
    let endpoints: Vec<String> = (0..endpoints)
        .map(|i| {
            format!(
                r#"{{"addresses": ["10.{}.{}.{}"], "conditions": {{"ready": true}}, "nodeName": "node-{}",
                "zone": "zone-{}", "targetRef": {{"kind": "Pod", "name": "{name}-pod-{i}", "uid": "00000000-0000-0000-0000-000000000000"}}}}"#,
                i >> 16 & 255, i >> 8 & 255, i & 255, i % 50, i % 3
            )
            .replace('\n', " ")
        })
        .collect();
    format!(
        r#"{{"metadata": {{"name": "{name}", "namespace": "default", "resourceVersion": "{version}",
        "labels": {{"kubernetes.io/service-name": "web"}}, "annotations": {{{annotations}}}}},
        "addressType": "IPv4", "ports": [{{"name": "", "port": 80, "protocol": "TCP"}}], "endpoints": [{}]}}"#,
        endpoints.join(",")
    )
    .replace('\n', " ")
}

fn node() -> String {
    r#"{"metadata": {"name": "node-a", "resourceVersion": "1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}"#
        .replace('\n', " ")
}

fn event(kind: &str, object: &str) -> String {
    format!(r#"{{"type": "{kind}", "object": {object}}}"#)
}

fn bookmark(version: u32) -> String {
    event(
        "BOOKMARK",
        &format!(r#"{{"metadata": {{"resourceVersion": "{version}"}}}}"#),
    )
}

fn end(version: u32) -> String {
    let object = format!(
        r#"{{"metadata": {{"resourceVersion": "{version}", "annotations": {{"k8s.io/initial-events-end": "true"}}}}}}"#
    );
    event("BOOKMARK", &object)
}

fn status(code: u16, message: &str) -> String {
    format!(
        r#"{{"kind": "Status", "code": {code}, "message": "{message}", "status": "Failure", "reason": "x"}}"#
    )
}

fn page(version: u32, next: &str, items: &[String]) -> String {
    format!(
        r#"{{"metadata": {{"resourceVersion": "{version}", "continue": "{next}"}}, "items": [{}]}}"#,
        items.join(",")
    )
}

/// A streamed initial list.
fn streamed(version: u32, objects: &[String]) -> Reply {
    let added = objects.iter().map(|object| event("ADDED", object));
    Reply::lines(added.chain([end(version)]))
}

/// A source that watches a scripted server, and the store that it fills.
struct World {
    api: FakeApi,
    source: ApiSource,
    store: ObjectStore,
    metrics: Arc<ApiMetrics>,
    runtime: tokio::runtime::Runtime,
}

fn pace() -> Pace {
    Pace {
        first: Duration::from_millis(5),
        last: Duration::from_millis(20),
        ..Pace::default()
    }
}

impl World {
    /// Answers for Services and for slices; the Node is there at once.
    fn new(services: Vec<Reply>, slices: Vec<Reply>) -> World {
        Self::at_pace(pace(), services, slices)
    }

    fn at_pace(pace: Pace, services: Vec<Reply>, slices: Vec<Reply>) -> World {
        let api = FakeApi::new();
        api.script("services", services);
        api.script("endpointslices", slices);
        api.script("nodes", [streamed(1, &[node()]).then(Part::Hold)]);
        Self::of(api, pace)
    }

    fn of(api: FakeApi, pace: Pace) -> World {
        let access = ApiAccess {
            kubeconfig: None,
            server: Some(format!("http://{}", api.address)),
        };
        let metrics = Arc::new(ApiMetrics::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // As the agent does it: inside a runtime.
        let start = async { ApiSource::start_with(&access, "node-a", metrics.clone(), pace) };
        World {
            source: runtime.block_on(start).unwrap(),
            api,
            store: ObjectStore::new(),
            metrics,
            runtime,
        }
    }

    fn first(&mut self) {
        let initial = async { timeout(Duration::from_secs(20), self.source.initial()).await };
        let events = self.runtime.block_on(initial).expect("no first state");
        self.store.initial(events.expect("the source ended"));
    }

    /// Takes what is there; what became dirty.
    fn step(&mut self) -> Option<Dirty> {
        let next = async { timeout(Duration::from_millis(10), self.source.next()).await };
        let batch = self.runtime.block_on(next).ok()?.expect("the source ended");
        let mut dirty = Dirty::default();
        for relist in batch.lists {
            let more = self.store.relist(relist.list, relist.events, &relist.keep);
            dirty.services.extend(more.services);
            dirty.node |= more.node;
        }
        dirty
            .services
            .extend(self.store.apply(batch.changes).services);
        Some(dirty)
    }

    fn until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
        let deadline = StdInstant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(
                StdInstant::now() < deadline,
                "never: {what}; {}",
                self.page()
            );
            self.step();
        }
    }

    fn services(&self) -> BTreeSet<String> {
        let services = self.store.services();
        services
            .map(|service| format!("{}:{}", service.key.name, service.ports[0].port))
            .collect()
    }

    fn serves(&self, wanted: &[&str]) -> bool {
        self.services() == wanted.iter().map(|text| (*text).to_owned()).collect()
    }

    fn asked(&self, what: &str) -> Vec<String> {
        let asked = self.api.asked("services");
        asked
            .iter()
            .map(|asked| asked.query.get(what).cloned().unwrap_or_default())
            .collect()
    }

    fn page(&self) -> String {
        let mut out = Text::default();
        self.metrics.render(&mut out);
        out.into_string()
    }
}

fn held(version: u32) -> Vec<Reply> {
    vec![streamed(version, &[]).then(Part::Hold)]
}

#[test]
fn lists_are_streamed_with_the_selectors_of_a_proxy() {
    // semantics 2.1, 2.2, 2.6
    let mut world = World::new(
        vec![streamed(5, &[service("a", 1, 4)]).then(Part::Hold)],
        vec![streamed(5, &[slice("a-1", 3, 4, "")]).then(Part::Hold)],
    );
    world.first();
    assert!(world.serves(&["a:1"]));
    assert_eq!(world.store.slices_of(&Key::new("default", "web")).len(), 1);
    assert_eq!(world.store.node().unwrap().zone.as_deref(), Some("a"));
    let asked = |kind: &str, what: &str| world.api.asked(kind)[0].query.get(what).cloned();
    let label = "labelSelector";
    assert_eq!(
        asked("services", label).as_deref(),
        Some("!service.kubernetes.io/service-proxy-name")
    );
    assert_eq!(
        asked("services", "fieldSelector").as_deref(),
        Some("spec.clusterIP!=None")
    );
    assert_eq!(
        asked("endpointslices", label).as_deref(),
        Some("!service.kubernetes.io/headless")
    );
    assert_eq!(
        asked("nodes", "fieldSelector").as_deref(),
        Some("metadata.name=node-a")
    );
    for kind in ["services", "endpointslices", "nodes"] {
        assert_eq!(asked(kind, "sendInitialEvents").as_deref(), Some("true"));
        assert_eq!(asked(kind, "allowWatchBookmarks").as_deref(), Some("true"));
    }
}

#[test]
fn changes_follow_the_list_in_the_same_stream_and_duplicates_change_nothing() {
    // semantics 2.5, 2.9, 22.2
    let gate = Arc::new(Semaphore::new(0));
    let a = service("a", 1, 4);
    let stream = streamed(5, &[a.clone(), service("b", 1, 5)]).then(Part::Gate(gate.clone()));
    let mut stream = stream;
    for (kind, object) in [
        ("MODIFIED", service("b", 2, 6)),
        ("ADDED", service("c", 1, 7)),
        ("DELETED", service("c", 1, 8)),
        ("ADDED", a.clone()),
        ("MODIFIED", a),
    ] {
        stream = stream.then(Part::Text(event(kind, &object) + "\n"));
    }
    let mut world = World::new(vec![stream.then(Part::Hold)], held(1));
    world.first();
    assert!(world.serves(&["a:1", "b:1"]));
    gate.add_permits(1);
    let mut dirty = BTreeSet::new();
    while !world.serves(&["a:1", "b:2"]) || dirty.is_empty() {
        dirty.extend(world.step().unwrap_or_default().services);
    }
    while let Some(more) = world.step() {
        dirty.extend(more.services);
    }
    dirty.remove(&Key::new("default", "c"));
    assert_eq!(dirty, BTreeSet::from([Key::new("default", "b")]));
}

#[test]
fn a_server_that_streams_no_lists_is_read_by_pages() {
    let refused = Reply::text(422, status(422, "sendInitialEvents is forbidden"));
    let watch = Reply::lines([event("ADDED", &service("d", 1, 10))]).then(Part::Hold);
    let mut world = World::new(
        vec![
            refused,
            Reply::text(
                200,
                page(9, "more", &[service("a", 1, 3), service("b", 1, 4)]),
            ),
            Reply::text(200, page(9, "", &[service("c", 1, 5)])),
            watch,
        ],
        held(1),
    );
    world.first();
    world.until("the watch", |w| w.serves(&["a:1", "b:1", "c:1", "d:1"]));
    assert_eq!(world.asked("continue"), ["", "", "more", ""]);
    assert_eq!(world.asked("limit"), ["", "200", "200", ""]);
    assert_eq!(world.asked("resourceVersion"), ["", "", "", "9"]);
    assert!(
        world
            .page()
            .contains("lb_api_errors_total{kind=\"Service\"} 0\n")
    );
}

#[test]
fn a_server_that_never_ends_the_initial_list_is_read_by_pages() {
    let endless = Reply::lines([event("ADDED", &service("a", 1, 3))]).then(Part::Hold);
    let pace = Pace {
        listing: Duration::from_millis(50),
        ..pace()
    };
    let mut world = World::at_pace(
        pace,
        vec![
            endless,
            Reply::text(200, page(9, "", &[service("a", 2, 3)])),
        ],
        held(1),
    );
    world.first();
    assert!(world.serves(&["a:2"]));
}

#[test]
fn a_list_that_breaks_off_removes_nothing() {
    // semantics 2.10
    let gate = Arc::new(Semaphore::new(0));
    let half = Reply::lines([event("ADDED", &service("a", 1, 3))]);
    let expired = Reply::text(410, status(410, "too old"));
    let refused = Reply::text(422, status(422, "no"));
    let mut world = World::new(
        vec![
            half.clone().then(Part::Cut),
            half.clone(),
            streamed(5, &[service("a", 1, 3), service("b", 1, 4)]).then(Part::Cut),
            expired,
            half.then(Part::Cut),
            refused,
            Reply::text(200, page(7, "more", &[service("a", 1, 3)])).then(Part::Cut),
            Reply::text(200, page(8, "more", &[service("a", 1, 3)])),
            Reply::text(200, page(8, "", &[])).then(Part::Cut),
            Reply {
                status: 200,
                parts: vec![
                    Part::Gate(gate.clone()),
                    Part::Text(page(9, "", &[service("a", 1, 3)])),
                ],
            },
        ],
        held(1),
    );
    world.first();
    assert!(world.serves(&["a:1", "b:1"]));
    let api = world.api.clone();
    until("everything broke off", || api.asked("services").len() >= 10);
    while world.step().is_some() {}
    assert!(world.serves(&["a:1", "b:1"]), "{:?}", world.services());
    gate.add_permits(1);
    world.until("the complete list", |w| w.serves(&["a:1"]));
}

#[test]
fn an_expired_watch_lists_again_and_what_went_meanwhile_is_gone() {
    // semantics 2.9
    let expired = event("ERROR", &status(410, "too old resource version"));
    let mut world = World::new(
        vec![
            streamed(5, &[service("a", 1, 3), service("b", 1, 4)]),
            Reply::lines([expired]),
            streamed(9, &[service("b", 1, 4), service("c", 1, 8)]).then(Part::Hold),
        ],
        held(1),
    );
    world.first();
    let mut dirty = BTreeSet::new();
    while !world.serves(&["b:1", "c:1"]) {
        dirty.extend(world.step().unwrap_or_default().services);
    }
    let names: Vec<_> = dirty.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["a", "c"], "b did not change");
    assert_eq!(world.asked("resourceVersion"), ["", "5", ""]);
}

#[test]
fn pages_that_expire_are_asked_for_as_a_whole() {
    let mut world = World::new(
        vec![
            Reply::text(400, status(400, "what is sendInitialEvents")),
            Reply::text(200, page(9, "more", &[service("a", 1, 3)])),
            Reply::text(410, status(410, "the continue token expired")),
            Reply::text(200, page(10, "", &[service("b", 1, 3)])),
        ],
        held(1),
    );
    world.first();
    assert!(world.serves(&["b:1"]));
    assert_eq!(world.asked("limit")[..4], ["", "200", "200", ""]);
}

#[test]
fn a_watch_goes_on_from_the_last_bookmark() {
    let mut world = World::new(
        vec![
            streamed(5, &[]).then(Part::Text(bookmark(77) + "\n")),
            Reply::lines([event("ADDED", &service("a", 1, 80))]).then(Part::Cut),
            Reply::lines([event("ADDED", &service("b", 1, 81))]).then(Part::Hold),
        ],
        held(1),
    );
    world.first();
    world.until("both watches", |w| w.serves(&["a:1", "b:1"]));
    assert_eq!(world.asked("resourceVersion"), ["", "77", "80"]);
    assert_eq!(world.asked("sendInitialEvents"), ["true", "", ""]);
}

#[test]
fn an_object_that_cannot_be_used_is_named_and_the_others_are_served() {
    let gate = Arc::new(Semaphore::new(0));
    let broken = |version| service("b", 70_000, version);
    let stream = streamed(5, &[service("a", 1, 3), broken(3), service("c", 1, 4)])
        .then(Part::Gate(gate.clone()))
        .then(Part::Text(event("MODIFIED", &service("b", 2, 6)) + "\n"))
        .then(Part::Gate(gate.clone()))
        .then(Part::Text(event("MODIFIED", &broken(7)) + "\n"));
    let relist = streamed(9, &[service("a", 1, 3), broken(7)]);
    let relist = relist
        .then(Part::Text(event("DELETED", &broken(10)) + "\n"))
        .then(Part::Hold);
    let mut world = World::new(
        vec![stream, Reply::text(410, status(410, "")), relist],
        held(1),
    );
    world.first();
    assert!(world.serves(&["a:1", "c:1"]));
    let problems = world.source.problems();
    assert_eq!(problems.list()[0].file, "Service default/b");
    assert!(problems.list()[0].message.contains("spec.ports[0].port"));
    gate.add_permits(1);
    world.until("repaired", |w| w.serves(&["a:1", "b:2", "c:1"]));
    assert!(problems.list().is_empty());
    gate.add_permits(1);
    // Broken again, it keeps its last good state, in the next list, too; only a deletion ends it.
    until("broken again", || !problems.list().is_empty());
    world.until("listed again and deleted", |w| w.serves(&["a:1"]));
    assert!(problems.list().is_empty());
    assert!(
        world
            .page()
            .contains("lb_api_malformed_objects_total{kind=\"Service\"} 3\n")
    );
}

#[test]
fn a_broken_object_of_a_new_list_keeps_its_last_good_state() {
    let mut world = World::new(
        vec![
            streamed(5, &[service("a", 1, 3), service("b", 1, 4)]),
            Reply::text(410, status(410, "")),
            streamed(9, &[service("b", 70_000, 8), service("c", 1, 8)]).then(Part::Hold),
        ],
        held(1),
    );
    world.first();
    world.until("the new list", |w| w.serves(&["b:1", "c:1"]));
}

#[test]
fn a_server_in_trouble_is_asked_again_and_again_while_the_last_state_stays() {
    let mut trouble = vec![streamed(5, &[service("a", 1, 3)])];
    for _ in 0..5 {
        trouble.extend([
            Reply::text(503, "overloaded"),
            Reply::text(429, status(429, "slow down")),
            Reply::text(401, status(401, "who")),
            Reply::lines(["<html>a proxy's error page</html>"]),
            Reply::lines([event("ERROR", &status(500, "etcd is away"))]),
            Reply::lines(Vec::<String>::new()).then(Part::Cut),
        ]);
    }
    trouble.push(Reply::lines([event("ADDED", &service("b", 1, 6))]).then(Part::Hold));
    let mut world = World::new(trouble, held(1));
    world.first();
    assert!(world.serves(&["a:1"]));
    world.until("the server is well", |w| w.serves(&["a:1", "b:1"]));
    let versions = world.asked("resourceVersion");
    assert_eq!(versions.len(), 32);
    assert!(
        versions[1..].iter().all(|version| version == "5"),
        "{versions:?}"
    );
    let page = world.page();
    for row in [
        "lb_api_errors_total{kind=\"Service\"} 30\n".to_owned(),
        "lb_api_lists_total{kind=\"Service\"} 1\n".to_owned(),
        format!(
            "rest_client_requests_total{{code=\"503\",method=\"GET\",host=\"{}\"}} 5\n",
            world.api.address
        ),
    ] {
        assert!(page.contains(&row), "{row} in {page}");
    }
}

#[test]
fn a_silent_watch_is_opened_anew() {
    let pace = Pace {
        watching: Duration::from_millis(500),
        ..pace()
    };
    let mut world = World::at_pace(
        pace,
        vec![
            streamed(5, &[]).then(Part::Hold),
            Reply::lines([event("ADDED", &service("a", 1, 6))]),
            Reply::text(410, status(410, "")),
            streamed(9, &[service("a", 2, 8)]).then(Part::Hold),
        ],
        held(1),
    );
    world.first();
    world.until("the second watch", |w| w.serves(&["a:1"]));
    world.until("the second list", |w| w.serves(&["a:2"]));
    assert_eq!(
        world.asked("sendInitialEvents")[..4],
        ["true", "", "", "true"]
    );
}

#[test]
fn a_server_that_comes_later_is_found() {
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = vacant.local_addr().unwrap();
    drop(vacant);
    let access = ApiAccess {
        kubeconfig: None,
        server: Some(format!("http://{address}")),
    };
    let metrics = Arc::new(ApiMetrics::default());
    let mut source = ApiSource::start_with(&access, "node-a", metrics.clone(), pace()).unwrap();
    let page = || {
        let mut out = Text::default();
        metrics.render(&mut out);
        out.into_string()
    };
    until("errors", || {
        page().contains("rest_client_requests_total{code=\"<error>\"")
    });
    let api = FakeApi::at(address);
    for kind in ["services", "endpointslices"] {
        api.script(kind, held(3));
    }
    api.script("nodes", [streamed(1, &[node()]).then(Part::Hold)]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let events = runtime
        .block_on(async { timeout(Duration::from_secs(20), source.initial()).await })
        .expect("no first state");
    assert_eq!(events.unwrap().len(), 1, "the Node");
}

#[test]
fn endpoints_cost_what_they_need_and_no_more() {
    // semantics 21.9
    let slices: Vec<String> = (0..50)
        .map(|i| slice(&format!("web-{i}"), 100, 4, ""))
        .collect();
    let bytes: usize = slices.iter().map(String::len).sum();
    let mut world = World::new(held(1), vec![streamed(5, &slices).then(Part::Hold)]);
    world.first();
    let slices = world.store.slices_of(&Key::new("default", "web"));
    let room: usize = slices.iter().map(|slice| slice.endpoints.capacity()).sum();
    assert_eq!(room, 5_000);
    let kept = room * size_of::<SliceEndpoint>();
    assert!(
        kept <= 5_000 * 32 && kept * 5 < bytes,
        "{kept} of {bytes} bytes"
    );
    let placements: BTreeSet<_> = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .map(|endpoint| Arc::as_ptr(&endpoint.placement))
        .collect();
    assert!(placements.len() <= 150, "{} placements", placements.len());
}

#[test]
fn triggers_of_changes_are_told_and_old_ones_are_not() {
    // semantics 23.1
    let at = |time: SystemTime| {
        format!(
            r#""endpoints.kubernetes.io/last-change-trigger-time": "{}""#,
            crate::clock::rfc3339(Some(time))
        )
    };
    let now = SystemTime::now();
    let (old, new) = (
        at(now - Duration::from_secs(3600)),
        at(now + Duration::from_secs(2)),
    );
    let gate = Arc::new(Semaphore::new(0));
    let stream = streamed(5, &[slice("w-1", 1, 3, &old), slice("w-2", 1, 4, &old)])
        .then(Part::Gate(gate.clone()))
        .then(Part::Text(
            event("MODIFIED", &slice("w-1", 2, 6, &new)) + "\n",
        ))
        .then(Part::Text(
            event("MODIFIED", &slice("w-2", 2, 7, &old)) + "\n",
        ))
        .then(Part::Text(
            event("DELETED", &slice("w-2", 2, 8, &new)) + "\n",
        ));
    // The same list again tells nothing new.
    let again = streamed(9, &[slice("w-1", 2, 6, &new)]).then(Part::Hold);
    let mut world = World::new(
        held(1),
        vec![stream, Reply::text(410, status(410, "")), again],
    );
    world.first();
    gate.add_permits(1);
    let mut triggers = Vec::new();
    let mut lists = 0;
    while lists == 0 {
        let next = async { timeout(Duration::from_secs(20), world.source.next()).await };
        let batch = world.runtime.block_on(next).unwrap().unwrap();
        triggers.extend(batch.triggers);
        lists += batch.lists.len();
    }
    assert_eq!(triggers.len(), 1, "{triggers:?}");
}

#[test]
fn an_event_is_written_at_its_object_and_a_second_one_counts() {
    let api = FakeApi::new();
    for kind in ["services", "endpointslices"] {
        api.script(kind, held(1));
    }
    api.script("nodes", [streamed(1, &[node()]).then(Part::Hold)]);
    let mut world = World::of(api, pace());
    world.first();
    let meta = r#"{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"}}"#;
    world
        .api
        .script("services", [Reply::text(200, meta), Reply::text(200, meta)]);
    let written = r#"{"metadata": {"name": "e", "namespace": "shop"}, "eventTime": null}"#;
    world.api.script(
        "events",
        [Reply::text(201, written), Reply::text(200, written)],
    );
    let writer = world.source.events();
    for _ in 0..2 {
        let key = Key::new("shop", "web");
        writer.warn(&key, "NoRoom", "Program", "x".repeat(5_000));
    }
    let api = world.api.clone();
    until("both written", || api.asked("events").len() == 2);
    let events = api.asked("events");
    assert_eq!(
        events[0].path,
        "/apis/events.k8s.io/v1/namespaces/shop/events"
    );
    let body: serde_json::Value = serde_json::from_str(&events[0].body).unwrap();
    assert_eq!(body["regarding"]["uid"], "u-1");
    assert_eq!(body["type"], "Warning");
    assert_eq!(body["reason"], "NoRoom");
    assert_eq!(body["reportingInstance"], "node-a");
    assert_eq!(body["note"].as_str().unwrap().len(), 1000);
    assert_eq!(events[1].method, "PATCH");
    let body: serde_json::Value = serde_json::from_str(&events[1].body).unwrap();
    assert_eq!(body["series"]["count"], 2);
    // More than fit into the queue are dropped, and nobody waits.
    for _ in 0..2_000 {
        writer.warn(&Key::new("shop", "web"), "NoRoom", "Program", String::new());
    }
    until("dropped", || {
        let mut out = Text::default();
        world.metrics.render(&mut out);
        !out.into_string()
            .contains("lb_api_events_total{result=\"dropped\"} 0\n")
    });
}
