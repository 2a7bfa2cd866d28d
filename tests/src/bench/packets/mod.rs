//! Nanoseconds a packet, of each path, behind the front program.
//!
//! The maps are filled by hand: what the agent would write, and before each row the flows that it is about, as the
//! programs would have made them, in a table sized for them (60 % load) or for many more. They are made in one random
//! order and visited in another. Each row's output packet is checked before it is timed.

use anyhow::Result;
use lb_common::{V4, V6};

mod addresses;
mod filled;
mod front;
mod rows;

use self::addresses::{BACKEND, NODE};
use self::filled::Filled;
use self::front::Front;
use self::rows::{Setting, rows_of};
use super::{Effort, Report, Row, median, progress, sys};
use crate::netns::NetNs;

/// Measures all packet rows.
pub fn measure(report: &mut Report, effort: &Effort) -> Result<()> {
    let ns = NetNs::new("bench")?;
    ns.ip(&format!(
        "link add out0 address 02:00:00:00:00:02 type veth peer name peer0\nlink set lo up\nlink set peer0 up\nlink set out0 up\n\
         addr add {}/24 dev out0\naddr add {}/64 dev out0 nodad\n\
         neigh add {} lladdr 02:00:00:00:00:12 dev out0\nneigh add {} lladdr 02:00:00:00:00:12 dev out0\n\
         route add 11.0.0.0/8 via {}\nroute add 2001:db8:c::/48 via {}\n",
        NODE.0, NODE.1, BACKEND.0, BACKEND.1, BACKEND.0, BACKEND.1
    ))?;
    ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    ns.run(|| {
        sys::pin();
        measure_here(report, effort)
    })?
}

fn measure_here(report: &mut Report, effort: &Effort) -> Result<()> {
    let ifindex = sys::ifindex("out0")?;
    let few = |room| Setting {
        services: 10,
        room,
        are_services_many: false,
    };
    let mut settings = vec![few(1), few(1 << 16)];
    if effort.flows > 1 << 16 {
        settings.push(few(effort.flows));
    }
    settings.push(Setting {
        services: effort.services,
        room: 1 << 16,
        are_services_many: true,
    });
    let (mut filled, mut rows) = (Vec::new(), Vec::new());
    for (number, setting) in settings.into_iter().enumerate() {
        progress(&format!(
            "packets: loading programs with {} Services and room for {} flows",
            setting.services, setting.room
        ));
        filled.push(Filled::new(setting.services, setting.room, ifindex)?);
        rows.extend(rows_of::<V4>(number, setting, effort));
        rows.extend(rows_of::<V6>(number, setting, effort));
    }
    let mut front = Front::load()?;
    for row in &rows {
        front.check(&mut filled, row, ifindex)?;
    }
    for round in 1..=effort.rounds {
        progress(&format!(
            "packets: {} rows of {} packets, round {round} of {}",
            rows.len(),
            effort.packets,
            effort.rounds
        ));
        for row in &mut rows {
            let time = front.time(&mut filled, row, ifindex)?;
            row.times.push(time);
        }
    }
    rows.sort_by_key(|row| (row.filled, row.path));
    for row in &rows {
        let floor = rows
            .iter()
            .find(|floor| floor.path.is_floor() && floor.path.hook() == row.path.hook())
            .filter(|_| !row.path.is_floor());
        let own = floor.map(|floor| {
            let times = row.times.iter().zip(&floor.times);
            let own: Vec<f64> = times.map(|(time, floor)| time - floor).collect();
            median(&own)
        });
        report.rows.push(Row {
            id: row.id.clone(),
            value: median(&row.times),
            unit: "ns",
            floor: floor.map(|floor| median(&floor.times)),
            own,
            runs: row.times.len(),
        });
    }
    Ok(())
}
