//! The rows that packets left behind, in words.

use std::fmt::Write;

use dataplane::conntrack::{ANSWERED, OPENED_BY_HIGH, OPENER_FINISHED, OTHER_FINISHED, RESET, SETTLED};
use dataplane::tables::{Affine, Affinity, Connection, Masquerade, Masqueraded, Tuple};
use dataplane::wire::{Address, Port, V4, V6};
use userspace::engine::emulator::Network;
use userspace::engine::{Clock, Engine, Tracks};
use userspace::error::Error;

const FLAGS: [(u8, &str); 5] = [
    (ANSWERED, "answered"),
    (SETTLED, "settled"),
    (OPENER_FINISHED, "opener finished"),
    (OTHER_FINISHED, "other finished"),
    (RESET, "reset"),
];

/// Every row of every node's `conntrack`, `masquerades` and `affinities`, in the order of the nodes and the keys' bytes.
pub(super) fn print<E: Engine + Clock>(network: &Network<E>) -> Result<String, Error> {
    let mut text = String::new();
    for node in 0..network.nodes() {
        let name = network.names().nodes.get(node).map_or("?", |names| &names.name);
        family::<V4, E>(network, node, name, &mut text)?;
        family::<V6, E>(network, node, name, &mut text)?;
    }
    Ok(text)
}

fn family<A: Address, E: Engine + Clock + Tracks<A>>(
    network: &Network<E>,
    node: usize,
    name: &str,
    text: &mut String,
) -> Result<(), Error> {
    let now_s = network.now_s(node)?;
    for (key, row) in network.connections::<A>(node)? {
        writeln!(text, "{name}  conntrack    {}", connection(&key, &row, now_s)).expect("a String");
    }
    for (key, row) in network.masquerades::<A>(node)? {
        writeln!(text, "{name}  masquerades  {}", masquerade(&key, &row)).expect("a String");
    }
    for (key, row) in network.affinities::<A>(node)? {
        writeln!(text, "{name}  affinities   {}", affinity(&key, &row, now_s)).expect("a String");
    }
    Ok(())
}

fn connection<A: Address>(key: &Tuple<A>, row: &Connection<A>, now_s: u32) -> String {
    let (low, high) = (end(key.low, key.low_port), end(key.high, key.high_port));
    let (opener, other) = if row.flags & OPENED_BY_HIGH != 0 { (high, low) } else { (low, high) };
    let mut text = format!("{} {opener} -> {other}", protocol(key.protocol));
    let other = if row.flags & Connection::<A>::DIALLED != 0 { "backend" } else { "frontend" };
    if row.frontend != A::default() {
        write!(text, ", {other} {}", end(row.frontend, row.frontend_port)).expect("a String");
    }
    if row.client_port != Port::default() {
        let whose = if other == "backend" { "from port" } else { "the client's own port" };
        write!(text, ", {whose} {}", row.client_port).expect("a String");
    }
    if row.masquerade_port != Port::default() {
        write!(text, ", masquerade port {}", row.masquerade_port).expect("a String");
    }
    match row.direct {
        Connection::<A>::AWAY => text += ", answered from the backend's node",
        Connection::<A>::HERE => text += ", answered from here",
        _ => {}
    }
    for (flag, word) in FLAGS {
        if row.flags & flag != 0 {
            text = text + ", " + word;
        }
    }
    format!("{text}, {}s left", row.expires_s.saturating_sub(now_s))
}

fn masquerade<A: Address>(key: &Masquerade<A>, row: &Masqueraded<A>) -> String {
    let (remote, pod) = (end(key.remote, key.remote_port), end(row.pod, row.pod_port));
    format!("{} port {} towards {remote}: {pod}", protocol(key.protocol), key.port)
}

fn affinity<A: Address>(key: &Affinity<A>, row: &Affine, now_s: u32) -> String {
    let left = row.expires_s.saturating_sub(now_s);
    format!("{} at Service {}: backend {}, {left}s left", key.client, key.service.0, row.backend.0)
}

fn end<A: Address>(address: A, port: Port) -> String {
    if port == Port::default() {
        address.to_string()
    } else if A::VERSION == 4 {
        format!("{address}:{port}")
    } else {
        format!("[{address}]:{port}")
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        number => format!("protocol {number}"),
    }
}
