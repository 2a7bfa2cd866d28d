//! Why our agent may differ from kube-proxy: every entry is a deliberate difference or a known fault of kube-proxy.

use super::{Frontend, Outcome, Point, subject::Kind};

/// A point at which two subjects differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which of our agent's ways.
    pub ours: Kind,
    /// Which of kube-proxy's modes.
    pub theirs: Kind,
    /// What was dialled.
    pub point: Point,
    /// What ours came to.
    pub our_outcome: Outcome,
    /// What kube-proxy's came to.
    pub their_outcome: Outcome,
}

impl Difference {
    /// Backends that answered, without what they saw.
    fn backends(outcome: &Outcome) -> Vec<&str> {
        let mut names: Vec<&str> = outcome
            .iter()
            .filter_map(|text| text.split_once(" sees ").map(|(name, _)| name))
            .collect();
        names.dedup();
        names
    }

    /// Both reach the same backends, and nothing fails; only the sources differ.
    fn is_source_only(&self) -> bool {
        let [ours, theirs] = [&self.our_outcome, &self.their_outcome];
        let all_answer = |outcome: &Outcome| outcome.iter().all(|text| text.contains(" sees "));
        all_answer(ours) && all_answer(theirs) && Self::backends(ours) == Self::backends(theirs)
    }

    /// Every backend of ours sees who dialled, or what kube-proxy's sees.
    fn ours_sees_the_client(&self) -> bool {
        let client = format!(" sees {}", self.point.source.place_name());
        self.our_outcome
            .iter()
            .all(|text| text.ends_with(&client) || self.their_outcome.contains(text))
    }

    fn ours_is(&self, text: &str) -> bool {
        self.our_outcome.len() == 1 && self.our_outcome.contains(text)
    }

    fn theirs_is(&self, text: &str) -> bool {
        self.their_outcome.len() == 1 && self.their_outcome.contains(text)
    }
}

/// A reason.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// In a few words.
    pub title: &'static str,
    /// Numbers of the semantics.
    pub semantics: &'static str,
    /// Why it is so.
    pub text: &'static str,
    /// Whether it explains a difference.
    pub explains: fn(&Difference) -> bool,
}

/// All reasons. The first that fits counts.
pub fn entries() -> &'static [Entry] {
    &[
        Entry {
            title: "source translated only where replies would miss the node",
            semantics: "9.9",
            text: "By default a backend sees the client itself wherever its replies pass the node that translated the \
                   flow; kube-proxy translates the source of all external traffic under policy Cluster. The backends \
                   that answer are the same.",
            explains: |it| {
                it.ours == Kind::Ours && it.is_source_only() && it.ours_sees_the_client()
            },
        },
        Entry {
            title: "a host process is told at once that it is refused",
            semantics: "10.7, 10.8",
            text: "kube-proxy's refusal drops the datagram on its way out, so `send` fails with EPERM, which counts as \
                   dropped here. This agent fails the call with ECONNREFUSED.",
            explains: |it| {
                it.point.source.is_host()
                    && it.point.udp
                    && it.ours_is("refused")
                    && it.theirs_is("dropped")
            },
        },
        Entry {
            title: "a host process is refused at addresses that are not the host's",
            semantics: "10.8, 26",
            text: "iptables mode refuses external addresses without endpoints only where packets come in or pass through: \
                   those of a host process leave the host. This agent refuses them as nftables mode does, and where \
                   source ranges forbid them it drops them.",
            explains: |it| {
                it.theirs == Kind::Iptables
                    && it.point.source.is_host()
                    && matches!(
                        it.point.frontend,
                        Frontend::ExternalIp | Frontend::LoadBalancer
                    )
                    && (it.ours_is("refused") || it.ours_is("dropped"))
                    && (it.theirs_is("dropped") || it.theirs_is("unreachable"))
            },
        },
        Entry {
            title: "a pod at the NodePort of another node gets what a client outside gets",
            semantics: "8.7, 8.8, 28.4",
            text: "Under external policy Local kube-proxy takes every pod of the cluster for one of its own, chooses among \
                   all endpoints and keeps the source: replies of endpoints on other nodes take another way, and the \
                   connection fails. Here such a pod counts as outside: only endpoints of the node that was dialled \
                   answer, and without one there is silence.",
            explains: |it| {
                it.point.source.is_pod()
                    && it.point.frontend.is_other_node_port(it.point.source)
                    && it.point.case.policies.external_local
                    && (it.ours_is("dropped")
                        || it.our_outcome.iter().all(|text| text.contains(" sees ")))
            },
        },
        Entry {
            title: "source ranges hold for Services without endpoints, too",
            semantics: "12.6",
            text: "As in nftables mode. iptables mode makes no filter for such a Service and refuses everybody.",
            explains: |it| {
                it.theirs == Kind::Iptables
                    && it.point.case.has_ranges
                    && it.point.frontend == Frontend::LoadBalancer
                    && it.ours_is("dropped")
                    && it.theirs_is("refused")
            },
        },
        Entry {
            title: "undefined ports of a ClusterIP are refused",
            semantics: "11.1",
            text: "As in nftables mode. iptables mode lets such packets follow the routes, which ends in silence.",
            explains: |it| {
                it.theirs == Kind::Iptables
                    && it.point.frontend == Frontend::UndefinedPort
                    && it.ours_is("refused")
            },
        },
    ]
}

/// The entry that explains a difference.
pub fn explanation(difference: &Difference) -> Option<&'static Entry> {
    entries().iter().find(|entry| (entry.explains)(difference))
}
