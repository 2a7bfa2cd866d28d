//! Endpoints of a list → rows of a Maglev table. A function of the endpoints' addresses and ports and of the
//! number of rows alone, so that every node computes the same table for the same list in any order of arrival.

use std::net::IpAddr;

/// Rows a backend where the port has an external frontend: nodes must agree, imbalance below 1 %.
const ROWS_EXTERNAL: usize = 100;
/// Rows a backend where it has only a ClusterIP, and of any long list: imbalance below 7 %.
const ROWS_INTERNAL: usize = 16;
/// Rows from which a list gets no more than [`ROWS_INTERNAL`] a backend: a table is built and written anew for
/// each change of its list, and there may be 10,000 lists of 100 endpoints.
const ROWS_ENOUGH: usize = 1_600;

/// Lower bounds of the ladder's primes. Dense where both kinds of small Services lie (multiples of 16
/// and of 100), about 1.25× apart above; the last bounds what one service port may take (2.5 MiB).
const STEPS: [u32; 60] = [
    32, 48, 64, 80, 96, 112, 128, 160, 200, 256, 300, 400, 500, 600, 700, 800, 1_000, 1_200, 1_400,
    1_600, 2_000, 2_400, 3_000, 3_600, 4_400, 5_000, 6_000, 7_500, 8_800, 10_000, 12_500, 15_000,
    17_500, 20_000, 25_000, 30_000, 36_000, 44_000, 50_000, 57_000, 65_537, 75_000, 88_000,
    100_000, 115_000, 130_000, 150_000, 170_000, 190_000, 215_000, 240_000, 270_000, 300_000,
    340_000, 380_000, 430_000, 480_000, 540_000, 600_000, 655_373,
];

/// The ladder of table sizes: the smallest prime at or above each step.
pub(crate) const LADDER: [u32; STEPS.len()] = {
    let mut ladder = STEPS;
    let mut i = 0;
    while i < ladder.len() {
        while !is_prime(ladder[i]) {
            ladder[i] += 1;
        }
        i += 1;
    }
    ladder
};

const fn is_prime(n: u32) -> bool {
    if n < 4 {
        return n > 1;
    }
    if n.is_multiple_of(2) {
        return false;
    }
    let mut d = 3;
    while d * d <= n {
        if n.is_multiple_of(d) {
            return false;
        }
        d += 2;
    }
    true
}

/// Rows of the table of a list: a function of the number of its endpoints and of the port's kind only.
/// An empty list has none, one endpoint needs one row.
pub(crate) fn rows_for(endpoints: usize, external: bool) -> u32 {
    if endpoints < 2 {
        return u32::from(endpoints == 1);
    }
    let enough = endpoints.saturating_mul(ROWS_INTERNAL);
    let least = if external {
        enough.max(ROWS_ENOUGH.min(endpoints.saturating_mul(ROWS_EXTERNAL)))
    } else {
        enough
    };
    let step = LADDER.partition_point(|&rows| (rows as usize) < least);
    LADDER[step.min(LADDER.len() - 1)]
}

/// The greatest table of a list that `room` rows hold: a step of the ladder with more rows than endpoints, or one
/// row an endpoint, or one each for as many endpoints as there are rows.
pub(crate) fn rows_within(room: u32, endpoints: usize) -> u32 {
    let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
    let step = LADDER.partition_point(|&rows| rows <= room);
    match LADDER[..step].last() {
        Some(&rows) if rows > endpoints => rows,
        _ => room.min(endpoints),
    }
}

/// Whether a list of so many endpoints may have a table of `rows` rows.
pub(crate) fn is_size(rows: u32, endpoints: usize) -> bool {
    rows as usize <= endpoints || LADDER.binary_search(&rows).is_ok()
}

/// An endpoint with the id that rows hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Member {
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    /// Its backend id; has no part in the choice of rows.
    pub(crate) id: u32,
}

/// Builds tables; keeps its memory from one to the next.
#[derive(Default, Debug)]
pub(crate) struct Maglev {
    rows: Vec<u32>,
    /// A bit for each row that is taken: most tries meet a row that is, and the bits of a long table fit into the
    /// first cache where its rows do not.
    taken: Vec<u64>,
    walks: Vec<Walk>,
}

/// Where a member stands in its permutation of the rows.
#[derive(Debug)]
struct Walk {
    at: u32,
    skip: u32,
    id: u32,
}

impl Maglev {
    /// The table of a list with `rows` rows, a step of the ladder, or no more than there are members: then the first
    /// members have one each. `members` is sorted in place; ids are not 0.
    pub(crate) fn build(&mut self, members: &mut [Member], rows: u32) -> &[u32] {
        self.rows.clear();
        if members.is_empty() || rows == 0 {
            return &self.rows;
        }
        if !members.is_sorted() {
            members.sort_unstable();
        }
        if rows as usize <= members.len() {
            self.rows
                .extend(members[..rows as usize].iter().map(|member| member.id));
            return &self.rows;
        }
        self.rows.resize(rows as usize, 0);
        if let [member] = members {
            self.rows.fill(member.id);
            return &self.rows;
        }
        self.taken.clear();
        self.taken.resize((rows as usize).div_ceil(64), 0);
        self.walks.clear();
        self.walks.extend(members.iter().map(|m| {
            let (first, second) = hashes(m);
            Walk {
                at: reduce(first, rows),
                skip: 1 + reduce(second, rows - 1),
                id: m.id,
            }
        }));
        let mut left = rows;
        'fill: loop {
            for walk in &mut self.walks {
                let mut at = walk.at;
                while self.taken[at as usize / 64] >> (at % 64) & 1 == 1 {
                    at = next(at, walk.skip, rows);
                }
                self.taken[at as usize / 64] |= 1 << (at % 64);
                self.rows[at as usize] = walk.id;
                walk.at = next(at, walk.skip, rows);
                left -= 1;
                if left == 0 {
                    break 'fill;
                }
            }
        }
        &self.rows
    }
}

fn next(at: u32, skip: u32, rows: u32) -> u32 {
    let sum = at + skip;
    if sum >= rows { sum - rows } else { sum }
}

/// A number below `bound`, without division.
fn reduce(hash: u64, bound: u32) -> u32 {
    (((hash >> 32) * u64::from(bound)) >> 32) as u32
}

/// Two hashes of an endpoint. Fixed for ever: nodes of different versions must agree.
fn hashes(member: &Member) -> (u64, u64) {
    let (family, bits) = match member.addr {
        IpAddr::V4(addr) => (4u64, u128::from(u32::from(addr))),
        IpAddr::V6(addr) => (6, u128::from(addr)),
    };
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    let mut state = scramble(0x6c62_2d6d_6167_6c76 ^ (family << 16 | u64::from(member.port)));
    state = scramble(state ^ high);
    state = scramble(state ^ low);
    (scramble(state ^ 1), scramble(state ^ 0x9e37_79b9_7f4a_7c15))
}

/// The finalizer of SplitMix64.
fn scramble(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn members(n: u32) -> Vec<Member> {
        (0..n)
            .map(|i| Member {
                addr: Ipv4Addr::from(0x0a01_0000 + i).into(),
                port: 8080,
                id: i + 1,
            })
            .collect()
    }

    fn spread(table: &[u32]) -> (usize, usize) {
        let mut counts = std::collections::HashMap::<u32, usize>::new();
        for id in table {
            *counts.entry(*id).or_default() += 1;
        }
        (
            counts.values().copied().min().unwrap(),
            counts.values().copied().max().unwrap(),
        )
    }

    #[test]
    fn ladder_rises_and_is_prime() {
        assert!(LADDER.is_sorted_by(|a, b| a < b));
        assert_eq!(LADDER[LADDER.len() - 1], 655_373);
        for (a, b) in LADDER.iter().zip(&LADDER[1..]) {
            assert!(f64::from(*b) / f64::from(*a) <= 1.5, "{a} {b}");
        }
        assert!(
            LADDER
                .iter()
                .all(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0))
        );
    }

    #[test]
    fn ten_thousand_services_of_ten_fit() {
        assert!(10_000 * u64::from(rows_for(10, true)) * 4 <= 64 << 20);
        assert!(10_000 * u64::from(rows_for(10, false)) * 4 <= 16 << 20);
        assert_eq!(
            (rows_for(0, true), rows_for(1, true), rows_for(1, false)),
            (0, 1, 1)
        );
        assert_eq!(rows_for(1_000_000, true), 655_373);
    }

    #[test]
    fn a_long_list_has_fewer_rows_a_backend() {
        let rows = [10, 16, 100, 5_000].map(|endpoints| rows_for(endpoints, true));
        assert_eq!(rows, [1_009, 1_601, 1_601, 88_001]);
    }

    #[test]
    fn room_is_used_down_to_a_row_an_endpoint_and_below() {
        let within = [1_601, 1_600, 211, 37, 36, 30, 10, 3, 0].map(|room| rows_within(room, 30));
        assert_eq!(within, [1_601, 1_409, 211, 37, 30, 30, 10, 3, 0]);
        // One endpoint never needs more than a row.
        assert_eq!(rows_within(1, 1), 1);
    }

    #[test]
    fn a_table_without_room_for_all_serves_the_first() {
        let mut maglev = Maglev::default();
        let mut list = members(5);
        assert_eq!(maglev.build(&mut list, 5), [1, 2, 3, 4, 5]);
        assert_eq!(maglev.build(&mut list, 3), [1, 2, 3]);
    }

    #[test]
    fn losing_one_backend_moves_little_else() {
        // docs/decisions.md, "Table sizes from a ladder of primes".
        for (n, rows, bound) in [
            (10u32, 65_537, 0.006),
            (100, 65_537, 0.006),
            (1_000, 65_537, 0.006),
            (100, 16_381, 0.015),
            (50, 1_601, 0.06),
            (100, 1_601, 0.06),
        ] {
            let all = members(n);
            let mut maglev = Maglev::default();
            let before = maglev.build(&mut all.clone(), rows).to_vec();
            let (mut needless, mut trials) = (0usize, 0usize);
            for lost in (0..n).step_by((n as usize / 10).max(1)) {
                let mut rest: Vec<_> = all.iter().copied().filter(|m| m.id != lost + 1).collect();
                let after = maglev.build(&mut rest, rows);
                needless += before
                    .iter()
                    .zip(after)
                    .filter(|(b, a)| b != a && **b != lost + 1)
                    .count();
                trials += rows as usize;
            }
            assert!(
                (needless as f64) < trials as f64 * bound,
                "{n} backends: {needless} of {trials}"
            );
        }
    }

    #[test]
    fn family_and_port_change_the_table() {
        let mut maglev = Maglev::default();
        let v4 = members(5);
        let mut port = v4.clone();
        port.iter_mut().for_each(|m| m.port = 8081);
        let mut v6: Vec<_> = v4
            .iter()
            .map(|m| Member {
                addr: Ipv6Addr::from(u128::from(m.id)).into(),
                ..*m
            })
            .collect();
        let a = maglev.build(&mut v4.clone(), 503).to_vec();
        assert_ne!(a, maglev.build(&mut port, 503));
        assert_ne!(a, maglev.build(&mut v6, 503));
    }

    #[test]
    fn table_of_a_fixed_list_never_changes() {
        // Nodes of different versions must agree: a change here breaks a mixed cluster.
        let mut maglev = Maglev::default();
        let table = maglev.build(&mut members(3), 37);
        assert_eq!(table, FIXED_TABLE);
    }
    const FIXED_TABLE: &[u32] = &[
        3, 3, 3, 2, 1, 3, 2, 2, 1, 1, 1, 3, 1, 1, 1, 3, 2, 2, 2, 3, 1, 3, 1, 1, 1, 2, 2, 2, 3, 3,
        3, 2, 3, 1, 2, 2, 1,
    ];

    proptest! {
        // semantics 6.10
        #[test]
        fn shares_differ_by_one_row_at_most(n in 2u32..300, external: bool, room in 2u32..2_000) {
            let proper = rows_for(n as usize, external);
            let mut maglev = Maglev::default();
            for rows in [proper, rows_within(room.max(n), n as usize)] {
                let (least, most) = spread(maglev.build(&mut members(n), rows));
                prop_assert!(most - least <= 1 && least >= 1);
            }
            let (least, most) = spread(maglev.build(&mut members(n), proper));
            let even = f64::from(proper) / f64::from(n);
            let bound = if external && n <= 16 { 0.01 } else { 0.07 };
            prop_assert!(most as f64 <= even * (1.0 + bound) && least as f64 >= even * (1.0 - bound));
        }

        #[test]
        fn order_of_arrival_does_not_matter(
            mut list in prop::collection::hash_set((any::<u32>(), 1u16..), 2..40)
                .prop_map(|s| s.into_iter().zip(1u32..).map(|((a, port), id)|
                    Member { addr: Ipv4Addr::from(a).into(), port, id }).collect::<Vec<_>>())
                .prop_shuffle(),
        ) {
            let mut maglev = Maglev::default();
            let rows = rows_for(list.len(), true);
            let mut reversed: Vec<_> = list.iter().rev().copied().collect();
            let one = maglev.build(&mut list, rows).to_vec();
            prop_assert_eq!(&one[..], maglev.build(&mut reversed, rows));
        }
    }
}
