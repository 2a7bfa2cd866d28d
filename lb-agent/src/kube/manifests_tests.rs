//! Each kind of change and each bad input of a manifest directory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;
use crate::{
    kube::{
        decode,
        intern::Interner,
        objects::{Key, Service},
        store::ObjectStore,
    },
    temp_dir::TempDir,
};

fn service_yaml(name: &str, ip: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {ip}\n  \
         ports: [{{port: {port}}}]\n"
    )
}

/// A followed directory and the store that it fills.
struct World {
    dir: TempDir,
    store: ObjectStore,
    events: mpsc::Receiver<Vec<ObjectEvent>>,
    problems: ManifestProblems,
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::of(dir)
    }
    fn of(dir: TempDir) -> Self {
        let mut source = ManifestSource::open(dir.path(), "node-a").unwrap();
        let mut store = ObjectStore::new();
        store.initial(source.initial().unwrap());
        let follower = source.follow().unwrap();
        World {
            dir,
            store,
            events: follower.events,
            problems: follower.problems,
        }
    }
    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }
    fn rename_in(&self, name: &str, text: &str) {
        self.write(".new", text);
        fs::rename(self.dir.path().join(".new"), self.dir.path().join(name)).unwrap();
    }
    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }
    fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.store.service(&Key::new("default", name))
    }
    fn port(&self, name: &str) -> Option<u16> {
        self.service(name).map(|service| service.ports[0].port)
    }
    /// Takes batches until the condition holds.
    fn until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !condition(self) {
            assert!(
                std::time::Instant::now() < deadline,
                "never: {what}; {:?}",
                self.problems
            );
            let batch = runtime.block_on(async {
                tokio::time::timeout(Duration::from_millis(20), self.events.recv()).await
            });
            if let Ok(batch) = batch {
                self.store.apply(batch.expect("the source ended"));
            }
        }
    }
    /// Waits until everything that was written before has been read.
    fn sync(&mut self) {
        let name = format!("sync-{}", self.store.services().count());
        self.write("zz-sync.yaml", &service_yaml(&name, "10.96.255.1", 1));
        self.until("sync", |world| world.service(&name).is_some());
        self.remove("zz-sync.yaml");
        self.until("sync removed", |world| world.service(&name).is_none());
    }
    fn problem(&self) -> String {
        let problems = self.problems.list();
        assert_eq!(problems.len(), 1, "{problems:?}");
        format!("{}: {}", problems[0].file, problems[0].message)
    }
}

#[test]
fn files_are_followed_as_they_are_created_edited_renamed_over_and_deleted() {
    let mut world = World::new(&[("a.yaml", &service_yaml("a", "10.96.0.1", 1))]);
    assert_eq!(world.port("a"), Some(1));
    world.write("b.yml", &service_yaml("b", "10.96.0.2", 1));
    world.until("created", |w| w.port("b") == Some(1));
    world.write("b.yml", &service_yaml("b", "10.96.0.2", 2));
    world.until("edited in place", |w| w.port("b") == Some(2));
    world.rename_in("b.yml", &service_yaml("b", "10.96.0.2", 3));
    world.until("renamed over", |w| w.port("b") == Some(3));
    world.remove("b.yml");
    world.until("deleted", |w| w.port("b").is_none());
    fs::rename(
        world.dir.path().join("a.yaml"),
        world.dir.path().join("a.off"),
    )
    .unwrap();
    world.until("renamed away", |w| w.port("a").is_none());
    let target = world.dir.path().join("a.off");
    std::os::unix::fs::symlink(&target, world.dir.path().join("link.yaml")).unwrap();
    world.until("linked", |w| w.port("a") == Some(1));
    assert!(world.problems.list().is_empty());
}

#[test]
fn many_files_at_once_are_all_read() {
    let mut world = World::new(&[]);
    for i in 0..2_000 {
        let ip = format!("10.97.{}.{}", i / 250, i % 250);
        world.rename_in(
            &format!("s{i}.yaml"),
            &service_yaml(&format!("s{i}"), &ip, 80),
        );
    }
    world.until("all there", |w| w.store.services().count() == 2_000);
    for i in 0..2_000 {
        world.remove(&format!("s{i}.yaml"));
    }
    world.until("all gone", |w| w.store.services().count() == 0);
}

#[test]
fn lists_and_several_documents_hold_several_objects() {
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
         "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 1}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"},
         "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 2}]}}]}"#;
    let items = ["c", "d"].map(|name| {
        format!(
            "- apiVersion: v1\n  kind: Service\n  metadata: {{name: {name}}}\n  \
             spec: {{clusterIP: 10.96.1.1, ports: [{{port: 3}}]}}\n"
        )
    });
    let yaml = format!("apiVersion: v1\nkind: List\nitems:\n{}", items.concat());
    let documents = format!(
        "# first\n---\n{}---\n{}---\n",
        service_yaml("e", "10.96.2.1", 1),
        service_yaml("f", "10.96.2.2", 1)
    );
    let world = World::new(&[("l.json", json), ("l.yaml", &yaml), ("d.yaml", &documents)]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert!(world.service(name).is_some(), "{name}");
    }
    assert!(world.problems.list().is_empty());
}

#[test]
fn lists_too_deep_in_each_other_are_an_error_and_no_overflow_of_the_stack() {
    let nested = |depth: usize| {
        let object = service_yaml("a", "10.96.0.1", 1);
        let object: serde_json::Value = serde_yaml_ng::from_str(&object).unwrap();
        let open = r#"{"kind":"List","items":["#.repeat(depth);
        format!("{open}{object}{}", "]}".repeat(depth))
    };
    // The flow style of YAML is JSON behind a first line.
    for (file, first) in [("a.json", ""), ("a.yaml", "---\n")] {
        let decoded = |depth| {
            let text = format!("{first}{}", nested(depth));
            decode::decode(file, text.as_bytes(), &mut Interner::default())
        };
        assert_eq!(decoded(16).unwrap().objects.len(), 1);
        let error = decoded(17).unwrap_err().to_string();
        assert!(
            error.starts_with("document 1: lists lie more than 16 deep"),
            "{error}"
        );
    }
    let world = World::new(&[
        ("deep.json", &nested(100_000)),
        ("good.yaml", &service_yaml("good", "10.96.0.2", 1)),
    ]);
    assert!(world.service("good").is_some());
    assert_eq!(
        world.problem(),
        "deep.json: document 1: lists lie more than 16 deep in each other; write their items into one"
    );
}

#[test]
fn a_bad_object_is_one_error_with_file_document_object_and_field() {
    let good = service_yaml("good", "10.96.0.1", 1);
    let with = |spec: &str| {
        format!("{good}---\napiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec: {spec}\n")
    };
    let bad = "bad.yaml: document 2: Service default/bad: ";
    for (text, wanted) in [
        (with("{ports: [{port: 80}]}"), format!("{bad}spec.clusterIP: missing; nobody allocates")),
        (
            with("{clusterIP: 10.96.0.2, type: NodePort, ports: [{port: 80}]}"),
            format!("{bad}spec.ports[0].nodePort: missing; nobody allocates"),
        ),
        (
            with("{clusterIP: 10.96.0.2, type: LoadBalancer, ports: [{port: 80}]}"),
            format!("{bad}spec.ports[0].nodePort: missing; nobody allocates"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ports: [{port: eighty}]}"),
            format!("{bad}spec.ports[0].port: invalid type: string \"eighty\", expected i32"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ports: [{port: 65536}]}"),
            format!("{bad}spec.ports[0].port: 65536 is no port"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ports: [{port: 80, protocol: tcp}]}"),
            format!("{bad}spec.ports[0].protocol: `tcp` is no protocol"),
        ),
        (with("{clusterIP: 10.96.0.2}"), format!("{bad}spec.ports: missing")),
        (
            with("{clusterIP: 10.96.0.2, ports: [{port: 80}, {port: 81}]}"),
            format!("{bad}spec.ports[0].name: missing"),
        ),
        // semantics 21.2
        (
            with("{clusterIP: 10.96.0.2, ports: [{name: a, port: 80}, {name: a, port: 81}]}"),
            format!("{bad}spec.ports[1].name: `a` is the name of spec.ports[0], too"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ports: [{name: a, port: 80}, {name: b, port: 80, protocol: TCP}]}"),
            format!("{bad}spec.ports[1].port: 80/TCP is in spec.ports[0], too"),
        ),
        (
            with("{clusterIP: 10.96.0.2.5, ports: [{port: 80}]}"),
            format!("{bad}spec.clusterIP: `10.96.0.2.5` is no address"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}"),
            format!("{bad}spec.clusterIPs[1]: missing; spec.ipFamilies[1] asks"),
        ),
        (
            with("{clusterIP: 10.96.0.2, ipFamilies: [IPv6], ports: [{port: 80}]}"),
            format!("{bad}spec.ipFamilies[0]: IPv6 does not fit"),
        ),
        (
            with("{clusterIP: 10.96.0.2, externalTrafficPolicy: local, ports: [{port: 80}]}"),
            format!("{bad}spec.externalTrafficPolicy: `local` is no policy"),
        ),
        (
            format!("{good}---\nmetadata: {{name: x}}\n"),
            "bad.yaml: document 2: object default/x: kind: missing".to_owned(),
        ),
        (format!("{good}---\nkind: [\n"), "bad.yaml: document 2: ".to_owned()),
        ("a: b: c\n".to_owned(), "bad.yaml: document 1: ".to_owned()),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s\n  labels: \
             {kubernetes.io/service-name: web}\naddressType: IPv4\nendpoints:\n- addresses: \
             ['fd00::1']\n"
                .to_owned(),
            "bad.yaml: document 1: EndpointSlice default/s: endpoints[0].addresses[0]: `fd00::1` \
             is no IPv4 address"
                .to_owned(),
        ),
    ] {
        let world = World::new(&[("bad.yaml", &text), ("ok.yaml", &good)]);
        assert!(world.problem().starts_with(&wanted), "{}\n{wanted}", world.problem());
        assert!(world.service("good").is_some(), "other files are unaffected");
    }
}

#[test]
fn a_broken_file_keeps_its_last_good_state_until_it_is_whole() {
    let whole = service_yaml("a", "10.96.0.1", 1);
    let mut world = World::new(&[("a.yaml", &whole)]);
    // Half a file, then the rest.
    world.write(
        "a.yaml",
        &whole.replace("ports: [{port: 1}]", "ports: [{po"),
    );
    world.until("reported", |w| !w.problems.list().is_empty());
    assert_eq!(world.port("a"), Some(1));
    world.write("a.yaml", &whole.replace("port: 1", "port: 2"));
    world.until("whole again", |w| w.port("a") == Some(2));
    assert!(world.problems.list().is_empty());
    // An empty file says nothing; a removed one does.
    world.write("a.yaml", "");
    world.until("reported", |w| !w.problems.list().is_empty());
    assert!(world.problem().contains("the file is empty"));
    assert_eq!(world.port("a"), Some(2));
    world.remove("a.yaml");
    world.until("gone", |w| {
        w.port("a").is_none() && w.problems.list().is_empty()
    });
}

#[test]
fn an_object_in_two_files_is_served_from_the_first_until_that_goes() {
    let mut world = World::new(&[("b.yaml", &service_yaml("a", "10.96.0.1", 1))]);
    world.write("a.yaml", &service_yaml("a", "10.96.0.1", 2));
    world.until("reported", |w| !w.problems.list().is_empty());
    assert_eq!(
        world.problem(),
        "a.yaml: document 1: Service default/a is in b.yaml (document 1), too, which serves; \
         remove one of them"
    );
    world.write("b.yaml", &service_yaml("a", "10.96.0.1", 3));
    world.until("the first is edited", |w| w.port("a") == Some(3));
    world.remove("b.yaml");
    world.until("the second takes over", |w| w.port("a") == Some(2));
    assert!(world.problems.list().is_empty());
}

#[test]
fn an_object_that_moves_between_files_never_goes() {
    let mut world = World::new(&[("a.yaml", &service_yaml("a", "10.96.0.1", 1))]);
    world.write("b.yaml", &service_yaml("a", "10.96.0.1", 1));
    world.remove("a.yaml");
    world.sync();
    assert_eq!(world.port("a"), Some(1));
    assert!(world.problems.list().is_empty());
}

#[test]
fn an_editors_backup_by_rename_does_not_remove_the_objects() {
    let mut world = World::new(&[("a.yaml", &service_yaml("a", "10.96.0.1", 1))]);
    let (file, backup) = (
        world.dir.path().join("a.yaml"),
        world.dir.path().join("a.yaml~"),
    );
    fs::rename(&file, &backup).unwrap();
    world.sync();
    assert_eq!(world.port("a"), Some(1), "while the editor writes");
    world.write("a.yaml", &service_yaml("a", "10.96.0.1", 2));
    world.until("written", |w| w.port("a") == Some(2));
    fs::rename(&file, &backup).unwrap();
    fs::remove_file(&backup).unwrap();
    world.until("really gone", |w| w.port("a").is_none());
}

#[test]
fn a_replaced_directory_is_followed() {
    let outer = TempDir::new();
    let path = outer.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service_yaml("a", "10.96.0.1", 1)).unwrap();
    let mut source = ManifestSource::open(&path, "node-a").unwrap();
    let mut store = ObjectStore::new();
    store.initial(source.initial().unwrap());
    let follower = source.follow().unwrap();
    let mut world = World {
        dir: outer,
        store,
        events: follower.events,
        problems: follower.problems,
    };
    fs::rename(&path, world.dir.path().join("old")).unwrap();
    world.until("reported", |w| !w.problems.list().is_empty());
    assert_eq!(world.port("a"), Some(1), "the last state serves");
    let next = world.dir.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("b.yaml"), service_yaml("b", "10.96.0.2", 1)).unwrap();
    fs::rename(&next, &path).unwrap();
    world.until("replaced", |w| {
        w.port("b") == Some(1) && w.port("a").is_none()
    });
    assert!(world.problems.list().is_empty());
    fs::write(path.join("b.yaml"), service_yaml("b", "10.96.0.2", 2)).unwrap();
    world.until("followed", |w| w.port("b") == Some(2));
    // Deleted and made anew, maybe with the same inode number.
    fs::remove_dir_all(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("c.yaml"), service_yaml("c", "10.96.0.3", 1)).unwrap();
    world.until("made anew", |w| {
        w.port("c") == Some(1) && w.port("b").is_none()
    });
}

#[test]
fn selectors_hide_objects_as_the_api_server_does() {
    // semantics 2.1, 2.3, 2.5
    let shown = service_yaml("a", "10.96.0.1", 1);
    let hidden = shown.replace(
        "{name: a}",
        "{name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}",
    );
    let mut world = World::new(&[
        ("a.yaml", &hidden),
        ("b.yaml", &service_yaml("b", "None", 1)),
    ]);
    assert!(world.service("a").is_none() && world.service("b").is_none());
    world.write("a.yaml", &shown);
    world.until("shown", |w| w.service("a").is_some());
    world.write("a.yaml", &hidden);
    world.until("hidden", |w| w.service("a").is_none());
    // semantics 2.4, 5.1, 5.2
    let slice = |name: &str, labels: &str, kind: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, \
             labels: {{{labels}}}}}\naddressType: {kind}\nendpoints: []\n---\n"
        )
    };
    let named = "kubernetes.io/service-name: a";
    let text = [
        slice("shown", named, "IPv4"),
        slice(
            "hidden",
            &format!("{named}, service.kubernetes.io/headless: ''"),
            "IPv4",
        ),
        slice("nobody", "x: y", "IPv4"),
        slice("empty", "kubernetes.io/service-name: ''", "IPv4"),
        slice("fqdn", named, "FQDN"),
    ];
    world.write("s.yaml", &text.concat());
    let key = Key::new("default", "a");
    world.until("slices", |w| !w.store.slices_of(&key).is_empty());
    let names: Vec<&str> = world
        .store
        .slices_of(&key)
        .iter()
        .map(|slice| &*slice.key.name)
        .collect();
    assert_eq!(names, ["shown"]);
}

/// Semantics 2.8, 2.12, 3.5, 4.2, 4.6, 7.1: what a proxy does not read changes nothing.
#[test]
fn what_is_never_read_makes_no_difference() {
    let plain = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  allocateLoadBalancerNodePorts: false
  ports: [{port: 80}]
";
    let full = "
apiVersion: v1
kind: Service
metadata:
  name: a
  annotations: {service.kubernetes.io/topology-mode: Auto, service.kubernetes.io/topology-aware-hints: auto}
  managedFields: [{manager: kubectl, operation: Apply, apiVersion: v1, fieldsType: FieldsV1}]
spec:
  type: LoadBalancer
  loadBalancerClass: example.org/class
  clusterIP: 10.96.0.1
  internalTrafficPolicy: Cluster
  trafficDistribution: PreferSameNode
  allocateLoadBalancerNodePorts: false
  ports: [{port: 80, targetPort: 9999}]
";
    let read = |text: &str| {
        World::new(&[("a.yaml", text)])
            .service("a")
            .unwrap()
            .clone()
    };
    assert_eq!(read(plain), read(full));
    assert!(!read(plain).internal_local);
    let slice = |hints: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a-1, labels: \
             {{kubernetes.io/service-name: a}}}}\naddressType: IPv4\nports: [{{name: '', port: 8080}}]\n\
             endpoints: [{{addresses: [10.244.1.2]{hints}}}]\n"
        );
        let world = World::new(&[("a.yaml", plain), ("s.yaml", &text)]);
        world.store.slices_of(&Key::new("default", "a"))[0].clone()
    };
    let without = &slice("").endpoints[0];
    assert!(without.placement.for_zones.is_empty() && without.placement.for_nodes.is_empty());
    // Hints need neither the annotation nor the field.
    let hinted = slice(", hints: {forZones: [{name: a}], forNodes: [{name: node-a}]}");
    let placement = &hinted.endpoints[0].placement;
    assert_eq!(
        (&*placement.for_zones[0], &*placement.for_nodes[0]),
        ("a", "node-a")
    );
    assert_eq!(
        (without.addr, hinted.ports[0].port),
        (hinted.endpoints[0].addr, 8080)
    );
}

#[test]
fn a_slice_is_read_with_the_defaults_of_the_api() {
    let text = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports:
- {name: '', port: 8080}
- {name: dns, port: 53, protocol: UDP}
- {port: 1}
- {name: none}
- {name: zero, port: 0}
endpoints:
- {addresses: [10.244.01.2, 10.244.1.3], nodeName: node-a, zone: a}
- {addresses: []}
- addresses: [10.244.1.4]
  conditions: {ready: false, serving: false, terminating: true}
  hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: node-b}]}
";
    let world = World::new(&[("a.yaml", text)]);
    let slice = &world.store.slices_of(&Key::new("default", "a"))[0];
    // semantics 5.4, 5.5: the API server's default of a null name; a null or zero number
    let ports: Vec<(&str, u16)> = slice.ports.iter().map(|p| (&*p.name, p.port)).collect();
    assert_eq!(ports, [("", 8080), ("dns", 53), ("", 1)]);
    let first = &slice.endpoints[0];
    // semantics 5.8, 5.9
    assert_eq!(first.addr.to_string(), "10.244.1.2");
    assert!(first.ready && first.serving && !first.terminating);
    assert_eq!(first.placement.node.as_deref(), Some("node-a"));
    assert_eq!(slice.endpoints.len(), 2);
    let last = &slice.endpoints[1];
    assert!(!last.ready && !last.serving && last.terminating);
    // semantics 5.12
    assert_eq!(last.placement.for_zones.len(), 2);
    assert_eq!(&*last.placement.for_nodes[0], "node-b");
}

#[test]
fn endpoints_become_slices_as_the_mirroring_controller_makes_them() {
    let text = "
apiVersion: v1
kind: Endpoints
metadata: {name: a}
subsets:
- addresses: [{ip: 10.244.1.2, nodeName: node-a}, {ip: 'fd00::2'}]
  notReadyAddresses: [{ip: 10.244.1.3}]
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: skipped, labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}}
subsets: [{addresses: [{ip: 10.244.1.2}], ports: [{port: 1}]}]
";
    let mut world = World::new(&[("a.yaml", text)]);
    let slices = world.store.slices_of(&Key::new("default", "a"));
    assert_eq!(slices.len(), 2);
    assert_eq!(slices[0].endpoints.len(), 2);
    assert!(slices[0].endpoints[0].ready && !slices[0].endpoints[1].ready);
    assert_eq!(slices[1].endpoints[0].addr.to_string(), "fd00::2");
    assert!(
        world
            .store
            .slices_of(&Key::new("default", "skipped"))
            .is_empty()
    );
    world.write("a.yaml", &text.replace(", {ip: 'fd00::2'}", ""));
    world.until("one family less", |w| {
        w.store.slices_of(&Key::new("default", "a")).len() == 1
    });
}

#[test]
fn only_this_agents_node_is_reported() {
    let node = |name: &str, zone: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: \
             {{topology.kubernetes.io/zone: {zone}}}}}\nstatus:\n  addresses:\n  - {{type: \
             Hostname, address: {name}}}\n  - {{type: ExternalIP, address: 198.51.100.1}}\n  - \
             {{type: InternalIP, address: {ip}}}\n---\n"
        )
    };
    let text = node("node-b", "b", "192.0.2.12") + &node("node-a", "a", "192.0.2.11");
    let mut world = World::new(&[("nodes.yaml", &text)]);
    let found = world.store.node().unwrap();
    assert_eq!(found.zone.as_deref(), Some("a"));
    // semantics 12.5
    let texts: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["192.0.2.11", "198.51.100.1"]);
    world.write("nodes.yaml", &text.replace("zone: a", "zone: c"));
    world.until("zone", |w| {
        w.store.node().unwrap().zone.as_deref() == Some("c")
    });
}

#[test]
fn status_entries_that_are_no_vip_are_skipped() {
    // semantics 4.3, 4.4
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a, creationTimestamp: '2026-01-02T03:04:05Z'}
spec:
  clusterIP: 10.96.0.1
  externalIPs: ['', nonsense, 10.08.0.1]
  loadBalancerSourceRanges: [' 10.0.0.0/8 ', nonsense]
  ports: [{port: 80}]
status:
  loadBalancer:
    ingress:
    - {hostname: example.org}
    - {ip: 198.51.100.1, ipMode: Proxy}
    - {ip: 198.51.100.2, ipMode: VIP}
    - {ip: 198.51.100.3}
";
    let world = World::new(&[("a.yaml", text)]);
    let service = world.service("a").unwrap();
    let texts: Vec<String> = service
        .load_balancer_ips
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts, ["198.51.100.2", "198.51.100.3"]);
    assert_eq!(
        service.external_ips,
        ["10.8.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(service.source_ranges.len(), 1);
    assert_eq!(service.skipped.len(), 2, "{:?}", service.skipped);
    assert!(service.created_ns.is_some());
}

/// Counts what is logged on this thread.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<Vec<Level>>>);

impl Subscriber for Counted {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(*event.metadata().level());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn a_broken_file_is_logged_once_per_content_and_unknown_kinds_once_per_file() {
    let dir = TempDir::new();
    let path = dir.path().join("a.yaml");
    let mut files = Files::new(dir.path(), "node-a");
    let names = BTreeSet::from(["a.yaml".to_owned()]);
    let counted = Counted::default();
    let dispatch = tracing::Dispatch::new(counted.clone());
    // While there is just one subscriber, a log line is switched off for all threads by the first that
    // comes by without it, such as another test's.
    let _second = tracing::Dispatch::new(Counted::default());
    let mut logged = |text: &str| {
        fs::write(&path, text).unwrap();
        tracing::dispatcher::with_default(&dispatch, || files.refresh(&names));
        std::mem::take(&mut *counted.0.lock().unwrap())
    };
    assert_eq!(logged("kind: ["), [Level::ERROR]);
    assert_eq!(logged("kind: ["), [] as [Level; 0]);
    assert_eq!(logged("kind: [["), [Level::ERROR]);
    let pods = "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Pod\n";
    assert_eq!(logged(pods), [Level::WARN]);
    assert_eq!(logged(pods), [] as [Level; 0]);
    let twice = service_yaml("a", "10.96.0.1", 1) + "---\n" + &service_yaml("a", "10.96.0.1", 2);
    assert_eq!(logged(&twice), [Level::ERROR]);
    assert_eq!(logged(&twice), [] as [Level; 0]);
    assert_eq!(logged(&service_yaml("a", "10.96.0.1", 1)), [] as [Level; 0]);
}

#[test]
fn the_examples_are_good_manifests() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut source = ManifestSource::open(&dir, "node-a").unwrap();
    let mut store = ObjectStore::new();
    let dirty = store.initial(source.initial().unwrap());
    assert_eq!(source.problems().list(), []);
    let names: Vec<&str> = dirty.services.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["dns", "local", "session", "web"]);
    assert_eq!(store.node().unwrap().addresses.len(), 2);
    for key in &dirty.services {
        assert_eq!(store.slices_of(key).len(), 2, "{key}");
        assert!(store.service(key).unwrap().skipped.is_empty(), "{key}");
    }
}
