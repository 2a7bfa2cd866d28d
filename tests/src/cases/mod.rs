//! What every build of the pipeline must do with packets, as cases that know none of the builds: each fills the maps of
//! a node, sends packets through its hooks and compares verdicts, bytes and counters.
//!
//! Traffic of both families goes between the [`Hosts`]; a service port's table has one row for each of
//! its backends, so that one with a single backend leaves no choice.
//!
//! A case is a function of a file here, named by subject, condition and outcome, and listed in that file's `cases!`.
//! [`all`] is the one list that the native run and the run through the loaded programs are made from.

/// A case of one family.
#[derive(Debug)]
pub struct Case<D> {
    /// `THEME::CASE::FAMILY`.
    pub name: String,
    /// Runs it on a dataplane whose maps are empty; panics where it does not hold.
    pub run: fn(&mut D),
}

impl<D> Clone for Case<D> {
    fn clone(&self) -> Self {
        Case {
            name: self.name.clone(),
            run: self.run,
        }
    }
}

impl<D> Case<D> {
    /// For `cases!`: `module` ends in the theme.
    pub fn new(module: &str, case: &str, family: &str, run: fn(&mut D)) -> Self {
        let theme = module.rsplit("::").next().unwrap_or(module);
        let family = family.to_lowercase();
        Case {
            name: format!("{theme}::{case}::{family}"),
            run,
        }
    }
}

/// The cases of a file, each for both families but those behind `V4:`: `cases! { a_case, another; V4: a_third }` for any
/// dataplane, `cases! { Native => a_case }` for one.
#[macro_export]
macro_rules! cases {
    ($dataplane:ty => $($list:tt)+) => {
        fn all() -> Vec<$crate::cases::Case<$dataplane>> {
            $crate::cases!(@list $($list)+)
        }
    };
    (@list $($case:ident),+ $(,)? $(; V4: $($v4:ident),+ $(,)?)?) => {
        vec![
            $($crate::cases!(@one V4 $case), $crate::cases!(@one V6 $case),)+
            $($($crate::cases!(@one V4 $v4),)+)?
        ]
    };
    (@one $family:ident $case:ident) => {
        $crate::cases::Case::new(module_path!(), stringify!($case), stringify!($family), |dataplane| {
            $case(&mut $crate::cases::CaseNode::<::lb_common::$family, _>::new(dataplane));
        })
    };
    ($($list:tt)+) => {
        pub(super) fn all<D: $crate::cases::Dataplane>() -> Vec<$crate::cases::Case<D>> {
            $crate::cases!(@list $($list)+)
        }
    };
}

mod dataplane;
mod hosts;
mod node;

mod affinity;
mod errors;
mod flows;
mod handshakes;
mod headers;
mod openings;
mod policies;
mod ports;
mod refusals;
mod room;
mod translation;
mod xdp;

pub use self::dataplane::{
    At, Dataplane, DataplaneOf, FamilyMaps, SEEDS, Verdict, put_record, records,
};
pub use self::hosts::{
    CONVERSATION, EXTERNAL, Hosts, NEXT_MAC, Net, OWN_MAC, POD, PROTOCOLS, answer, at, first,
    of_others, packet, parsed, reply, transmitted, turned,
};
use self::hosts::{ip, least, quotes};
pub use self::node::{BackendAt, CaseNode, Placed, emptied, local, remote};

/// Every case, for both families. Each wants a dataplane of its own, or one that was emptied.
pub fn all<D: Dataplane>() -> Vec<Case<D>> {
    let themes = [
        affinity::all(),
        errors::all(),
        flows::all(),
        handshakes::all(),
        headers::all(),
        openings::all(),
        policies::all(),
        ports::all(),
        refusals::all(),
        translation::all(),
        xdp::all(),
    ];
    themes.into_iter().flatten().collect()
}

/// The same of a dataplane whose tables of flows have two buckets.
pub fn crowded<D: Dataplane>() -> Vec<Case<D>> {
    room::all()
}
