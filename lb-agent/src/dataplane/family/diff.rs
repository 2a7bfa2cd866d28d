//! Wanted against present: which endpoints stay, which are new, which are gone; which lists are the same.

use std::{cmp::Ordering, net::IpAddr};

use crate::{dataplane::maglev::Member, desired::state::Endpoint};

/// What becomes of a service port's endpoints. All by index into the old or new list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointDiff {
    /// Ids parallel to the new endpoints; 0 where one must be taken.
    pub(super) ids: Vec<u32>,
    /// Ids that the port has no use for any more.
    pub(super) gone: Vec<u32>,
}

/// Matches two lists sorted by address and port.
pub(super) fn endpoints(old: &[Endpoint], old_ids: &[u32], new: &[Endpoint]) -> EndpointDiff {
    let mut diff = EndpointDiff {
        ids: Vec::with_capacity(new.len()),
        gone: Vec::new(),
    };
    let mut old = old.iter().zip(old_ids.iter().copied()).peekable();
    let place = |e: &Endpoint| -> (IpAddr, u16) { (e.addr, e.port) };
    for endpoint in new {
        let mut id = 0;
        while let Some((present, present_id)) = old.peek() {
            match place(present).cmp(&place(endpoint)) {
                Ordering::Less => diff.gone.push(*present_id),
                Ordering::Equal => id = *present_id,
                Ordering::Greater => break,
            }
            old.next();
            if id != 0 {
                break;
            }
        }
        diff.ids.push(id);
    }
    diff.gone.extend(old.map(|(_, id)| id));
    diff
}

/// Whether both lists select the same ids.
pub(super) fn same_members(one: &[Member], other: &[Member]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.id == b.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            addr: IpAddr::from([10, 0, 0, last]),
            port: 80,
            local: false,
            in_cluster: true,
            in_local: false,
            usable: true,
            zone: None,
        }
    }

    #[test]
    fn endpoints_that_stay_keep_their_ids() {
        let list = |l: &[u8]| l.iter().map(|i| endpoint(*i)).collect::<Vec<_>>();
        let diff = endpoints(
            &list(&[1, 3, 5, 9]),
            &[11, 13, 15, 19],
            &list(&[2, 3, 5, 7]),
        );
        assert_eq!(
            diff,
            EndpointDiff {
                ids: vec![0, 13, 15, 0],
                gone: vec![11, 19]
            }
        );
        assert_eq!(endpoints(&[], &[], &list(&[1])).ids, [0]);
        assert_eq!(endpoints(&list(&[1]), &[7], &[]).gone, [7]);
    }
}
