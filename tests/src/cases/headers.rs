//! Fragments, options, extension headers and absent checksums → the same in what leaves.

use lb_common::abi::{Counter, DropReason};

use super::refusals::{is_reset, unreachable};
use super::{
    At, CONVERSATION, CaseNode, DataplaneOf, Net, PROTOCOLS, Verdict, answer, at, first, packet,
    reply,
};
use crate::packet::{Checksum, DESTINATION, PacketBuilder, RST, TCP, UDP};

cases! {
    later_fragments_follow_the_first,
    options_and_extension_headers_are_kept;
    V4: udp_without_checksum_stays_without,
}

/// Semantics 8.15.
fn later_fragments_follow_the_first<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(UDP);
    node.cluster_ip_exists(vip);
    let big = |from, to| packet(UDP, from, to).payload(&[0x5a; 3000]);
    let input = big(pod, vip).build_fragments(77, 1400);
    let output = big(pod, to).build_fragments(77, 1400);
    assert_eq!(input.len(), 3);
    // One that overtakes its first could be put together under the wrong address.
    let before = node.dataplane.counter(DropReason::FragmentOrphan as u32);
    assert_eq!(node.run(At::Pod, &input[1]).0, Verdict::Drop);
    assert_eq!(
        node.dataplane.counter(DropReason::FragmentOrphan as u32),
        before + 1
    );
    for order in [[0, 1, 2], [0, 2, 1]] {
        for i in order {
            node.check_bytes(At::Pod, &input[i], Verdict::Pass, &output[i]);
        }
    }
    node.counted(Counter::Fragment, 4);
    // Two datagrams interleaved.
    let other = at(node.h.pod2, 40_000);
    let input2 = big(other, vip).build_fragments(78, 1400);
    let output2 = big(other, to).build_fragments(78, 1400);
    for i in 0..3 {
        node.check_bytes(At::Pod, &input2[i], Verdict::Pass, &output2[i]);
        node.check_bytes(At::Pod, &input[i], Verdict::Pass, &output[i]);
    }
    // Replies.
    let input = big(to, pod).build_fragments(79, 1400);
    let output = big(vip, pod).build_fragments(79, 1400);
    for i in 0..3 {
        node.check_bytes(At::Out, &input[i], Verdict::Pass, &output[i]);
    }
}

/// Semantics 18.7.
fn options_and_extension_headers_are_kept<F: Net, D: DataplaneOf<F>>(
    node: &mut CaseNode<'_, F, D>,
) {
    let odd = |builder: PacketBuilder| {
        if F::IS_V6 {
            builder.extension(0, &[]).extension(DESTINATION, &[1, 10])
        } else {
            builder.ip_options(&[7, 7, 4, 0, 0, 0, 0])
        }
    };
    for proto in PROTOCOLS {
        let (pod, vip, to) = node.pod_to_cluster_ip(proto);
        node.translated(
            At::Pod,
            &odd(first(proto, pod, vip)),
            &odd(first(proto, pod, to)),
        );
        for back in [answer, reply] {
            node.translated(
                At::Out,
                &odd(back(proto, to, pod)),
                &odd(back(proto, vip, pod)),
            );
            node.translated(
                At::Pod,
                &odd(packet(proto, pod, vip)),
                &odd(packet(proto, pod, to)),
            );
        }
        // A refusal leaves them out, of its quote, too.
        let none = at(node.h.vip, 81);
        node.service(none, proto, &[]);
        let (verdict, bytes) = node.run(At::Pod, &odd(packet(proto, pod, none)).build());
        assert_eq!(verdict, Verdict::Reflect);
        if proto == TCP {
            is_reset(&bytes, none, pod, RST, (CONVERSATION.server + 1, 0));
        } else {
            let answer = unreachable::<F>(&packet(proto, pod, none), none.ip(), pod.ip());
            assert_eq!(bytes, answer.build());
        }
    }
}

/// UDP over IPv4 may have no checksum, and keeps having none.
fn udp_without_checksum_stays_without<F: Net, D: DataplaneOf<F>>(node: &mut CaseNode<'_, F, D>) {
    let (pod, vip, to) = node.pod_to_cluster_ip(UDP);
    let bare = |from, to| packet(UDP, from, to).checksum(Checksum::Zero);
    node.translated(At::Pod, &bare(pod, vip), &bare(pod, to));
    node.translated(At::Out, &bare(to, pod), &bare(vip, pod));
    let error = node.error(node.h.remote, node.h.pod, &bare(pod, to), 28);
    let translated = node.error(node.h.vip, node.h.pod, &bare(pod, vip), 28);
    node.translated(At::Out, &error, &translated);
}
