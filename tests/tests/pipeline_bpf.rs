//! The cases of `lb_tests::cases` through the loaded programs: the same packets and states as `pipeline_native`, so that
//! the two builds of the pipeline cannot drift.

use std::process::ExitCode;

use lb_agent::bpf::features::Features;
use lb_common::abi::FrontendKind;
use lb_tests::cases::{self, At, CaseNode, Net, at, first, local, of_others, packet};
use lb_tests::loaded::{Loaded, Tabled};
use lb_tests::packet::TCP;
use lb_tests::prog_run::TableSize;
use lb_tests::requires::Need;
use lb_tests::trials::{self, Shared, trial};

fn main() -> ExitCode {
    let this_kernel = Shared::new(|| Loaded::new(&Features::probe(), TableSize::SMALL));
    // What newer kernels brought is not used.
    let older_kernel = Shared::new(|| {
        let features = Features {
            csum_ipv6: false,
            set_retval: false,
            ..Features::probe()
        };
        Loaded::new(&features, TableSize::SMALL)
    });
    let crowded = Shared::new(|| Loaded::new(&Features::probe(), TableSize::CROWDED));
    let mut trials = Vec::new();
    for case in cases::crowded() {
        let crowded = crowded.clone();
        let name = format!("crowded::{}", case.name);
        trials.push(trial(name, &[Need::Root, Need::Bpf], move || {
            crowded.with(|loaded| loaded.run_case(&case))
        }));
    }
    for case in [cases::all(), all()].into_iter().flatten() {
        // Neighbours in this order run at the same time, each with programs of its own.
        for (kernel, loaded) in [
            ("this_kernel", &this_kernel),
            ("older_kernel", &older_kernel),
        ] {
            let (case, loaded) = (case.clone(), loaded.clone());
            let name = format!("{kernel}::{}", case.name);
            trials.push(trial(name, &[Need::Root, Need::Bpf], move || {
                loaded.with(|loaded| loaded.run_case(&case))
            }));
        }
    }
    drop((this_kernel, older_kernel, crowded));
    trials::run(trials)
}

// The kernel alone tells tc whose a frame is.
lb_tests::cases! { Loaded => frame_of_another_host_is_untouched_at_tc }

fn frame_of_another_host_is_untouched_at_tc<F: Net + Tabled>(node: &mut CaseNode<'_, F, Loaded>) {
    let (client, front) = (at(node.h.client, 40_000), at(node.h.node, 30_080));
    let to = [local(node.h.pod, 8080)];
    node.service_with(front, TCP, FrontendKind::NodePort, &to, |_| {});
    node.untouched(At::External, &of_others(first(TCP, client, front)));
    node.translated(
        At::External,
        &first(TCP, client, front),
        &first(TCP, client, at(node.h.pod, 8080)),
    );
    node.untouched(At::External, &of_others(packet(TCP, client, front)));
}
