//! What live nodes reported, as the walks of packets: each node says what passed it, none knows of the
//! others.
//!
//! A node's reports come in order, and each packet's begin with a head and end with a tail. So they fall
//! into pieces, one for each packet and node. A packet's walk is the piece where it entered the cluster,
//! and, if that ends in the tunnel, the next piece that came out of it at the node where it led. Where its socket
//! was led to a backend before there was a packet, that comes first.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use dataplane::overlay::{UNWRAPPED, WRAPPED};
use dataplane::trace::{Record, Stage};
use dataplane::wire::Address as _;
use userspace::model::Cluster;
use userspace::observe::walk::{Event, Step};

use crate::fabric::Told;

/// What one node said of one packet.
type Piece = Vec<Record>;

/// The first packet that `client` sent and the first that came back, as far as they are reported: their
/// steps, the packets numbered 0 and 1. Nothing if nobody saw the first.
pub fn there_and_back(steps: &[Step], cluster: &Cluster, client: Ipv6Addr) -> Vec<Step> {
    let mut nodes: Vec<VecDeque<Piece>> =
        (0..cluster.nodes.len()).map(|node| pieces(steps, node, client)).collect();
    let mut walks = Vec::new();
    let first =
        (0..nodes.len()).find_map(|node| Some((node, take(&mut nodes[node], |it| sent_by(it, client))?)));
    let Some((node, piece)) = first else {
        // Who is led to itself sends no packet.
        let itself = (0..nodes.len())
            .find_map(|node| Some((node, led(steps, node, |it| it.target.0 == client.octets())?)));
        itself.into_iter().for_each(|(node, record)| tell(&mut walks, 0, node, record));
        return walks;
    };
    let head = piece.first().copied().unwrap_or_default();
    let ends = |it: &Record| (it.target, it.target_port, it.protocol);
    if let Some(record) = led(steps, node, |it| ends(it) == ends(&head)) {
        tell(&mut walks, 0, node, record);
    }
    let end = follow(&mut nodes, cluster, (node, piece), |node, record| tell(&mut walks, 0, node, record));
    // The answer enters where the packet left the cluster's nodes.
    let answers = |it: &Piece| !comes_out_of_the_tunnel(it) && !sent_by(it, client);
    if let Some(piece) = take(&mut nodes[end], answers) {
        follow(&mut nodes, cluster, (end, piece), |node, record| tell(&mut walks, 1, node, record));
    }
    walks
}

/// The same walks, and what the fabric did to the first packet of a client outside before any node saw it, and to the
/// first that came back to it after.
pub fn through_fabric(walks: Vec<Step>, told: &[Told], client: IpAddr) -> Vec<Step> {
    let says = |packet: u32, told: Option<&Told>| -> Vec<Step> {
        let says = told.map(|told| told.says.clone()).unwrap_or_default();
        says.into_iter().map(|says| Step { packet, event: Event::Fabric { says } }).collect()
    };
    let there = says(0, told.iter().find(|one| one.source == client));
    let back = says(1, told.iter().find(|one| one.target == client));
    there.into_iter().chain(walks).chain(back).collect()
}

fn tell(walks: &mut Vec<Step>, packet: u32, node: usize, record: Record) {
    walks.push(Step { packet, event: Event::Stage { node, record } });
}

/// Tells a packet's steps from node to node, and returns the node where it ended.
fn follow(
    nodes: &mut [VecDeque<Piece>],
    cluster: &Cluster,
    (mut node, mut piece): (usize, Piece),
    mut told: impl FnMut(usize, Record),
) -> usize {
    loop {
        let next = leads_to(&piece, cluster);
        piece.into_iter().for_each(|record| told(node, record));
        let unwrapped = next.and_then(|next| Some((next, take(&mut nodes[next], comes_out_of_the_tunnel)?)));
        match unwrapped {
            Some(next) => (node, piece) = next,
            None => return next.unwrap_or(node),
        }
    }
}

/// What a node said of the first such socket that was led to a backend.
fn led(steps: &[Step], node: usize, is_it: impl Fn(&Record) -> bool) -> Option<Record> {
    steps.iter().find_map(|step| match &step.event {
        Event::Stage { node: by, record }
            if *by == node && record.stage == Stage::Socket as u8 && is_it(record) =>
        {
            Some(*record)
        }
        _ => None,
    })
}

/// The node's pieces that have to do with `client`.
fn pieces(steps: &[Step], node: usize, client: Ipv6Addr) -> VecDeque<Piece> {
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    for step in steps {
        let Event::Stage { node: by, record } = &step.event else { continue };
        if *by != node {
            continue;
        }
        let heads = [Stage::Socket, Stage::FromPod, Stage::FromHost, Stage::FromUnderlay];
        if heads.iter().any(|head| *head as u8 == record.stage) || pieces.is_empty() {
            pieces.push_back(Vec::new());
        }
        pieces.back_mut().expect("there is one").push(*record);
    }
    // What a socket was told is no packet's walk.
    let is_packet = |piece: &Piece| piece.first().is_none_or(|head| head.stage != Stage::Socket as u8);
    let involved = |piece: &Piece| {
        piece.iter().any(|record| [record.source, record.target].iter().any(|end| end.0 == client.octets()))
    };
    pieces.retain(|piece| is_packet(piece) && involved(piece));
    pieces
}

fn take(pieces: &mut VecDeque<Piece>, is_it: impl Fn(&Piece) -> bool) -> Option<Piece> {
    let place = pieces.iter().position(is_it)?;
    pieces.remove(place)
}

fn comes_out_of_the_tunnel(piece: &Piece) -> bool {
    piece.iter().any(|record| record.stage == Stage::Overlay as u8 && record.detail == UNWRAPPED)
}

/// Whether `client` sent it, and it enters the cluster here.
fn sent_by(piece: &Piece, client: Ipv6Addr) -> bool {
    !comes_out_of_the_tunnel(piece) && piece.first().is_some_and(|record| record.source.0 == client.octets())
}

/// The node at the other end of the tunnel that the piece ends in.
fn leads_to(piece: &Piece, cluster: &Cluster) -> Option<usize> {
    let wrapped =
        piece.iter().find(|record| record.stage == Stage::Overlay as u8 && record.detail == WRAPPED)?;
    cluster.nodes.iter().position(|node| match node.address() {
        IpAddr::V4(address) => wrapped.target == dataplane::wire::V4(address.octets()).to_v6(),
        IpAddr::V6(address) => wrapped.target.0 == address.octets(),
    })
}

#[cfg(test)]
mod tests {
    use dataplane::wire::V4;
    use userspace::model::{self, load_text};

    use super::*;

    fn cluster() -> model::Cluster {
        load_text("two", "kind: Testbed\napiVersion: podpath.dev/v1alpha1\nmetadata: {name: two}\n")
            .expect("sound")
    }

    fn record(stage: Stage, detail: u8, source: [u8; 4], target: [u8; 4]) -> Record {
        let (source, target) = (V4(source).to_v6(), V4(target).to_v6());
        Record { stage: stage as u8, detail, source, target, ..Record::default() }
    }

    fn step(node: usize, record: Record) -> Step {
        Step { packet: 0, event: Event::Stage { node, record } }
    }

    /// Packet, node and stage of each step.
    fn told(walks: &[Step]) -> Vec<(u32, usize, u8)> {
        let told = walks.iter().map(|step| match &step.event {
            Event::Stage { node, record } => (step.packet, *node, record.stage),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn a_socket_that_was_led_comes_before_its_packet_or_alone_if_there_is_none() {
        let (web, api, service) = ([10, 244, 0, 2], [10, 244, 0, 3], [10, 96, 0, 1]);
        let reported = [
            step(0, record(Stage::FromPod, 0, [10, 244, 0, 9], api)),
            step(0, record(Stage::ToPod, 0, [10, 244, 0, 9], api)),
            step(0, record(Stage::Socket, 0, service, api)),
            step(0, record(Stage::FromPod, 0, web, api)),
            step(0, record(Stage::ToPod, 0, web, api)),
        ];
        let client = |address| Ipv6Addr::from(V4(address).to_v6().0);
        let word = |stage: Stage| stage as u8;
        assert_eq!(
            told(&there_and_back(&reported, &cluster(), client(web))),
            [(0, 0, word(Stage::Socket)), (0, 0, word(Stage::FromPod)), (0, 0, word(Stage::ToPod))]
        );
        let itself = [step(0, record(Stage::Socket, 0, service, web))];
        assert_eq!(told(&there_and_back(&itself, &cluster(), client(web))), [(0, 0, word(Stage::Socket))]);
    }

    #[test]
    fn a_packet_is_followed_through_the_tunnel_and_its_answer_back() {
        let (web, api, n1, n2) = ([10, 244, 0, 2], [10, 244, 1, 2], [10, 240, 0, 4], [10, 240, 0, 5]);
        let reported = [
            step(0, record(Stage::FromPod, 0, web, api)),
            step(0, record(Stage::Overlay, WRAPPED, n1, n2)),
            step(0, record(Stage::FromUnderlay, 0, n2, n1)),
            step(0, record(Stage::Overlay, UNWRAPPED, n2, n1)),
            step(0, record(Stage::ToPod, 0, api, web)),
            step(1, record(Stage::FromUnderlay, 0, n1, n2)),
            step(1, record(Stage::Overlay, UNWRAPPED, n1, n2)),
            step(1, record(Stage::ToPod, 0, web, api)),
            // The first packet again, which is no answer to itself.
            step(1, record(Stage::FromUnderlay, 0, n1, n2)),
            step(1, record(Stage::Overlay, UNWRAPPED, n1, n2)),
            step(1, record(Stage::ToPod, 0, web, api)),
            step(1, record(Stage::FromPod, 0, api, web)),
            step(1, record(Stage::Overlay, WRAPPED, n2, n1)),
        ];
        let client = Ipv6Addr::from(V4(web).to_v6().0);
        let walks = there_and_back(&reported, &cluster(), client);
        let word = |stage: Stage| stage as u8;
        assert_eq!(
            told(&walks),
            [
                (0, 0, word(Stage::FromPod)),
                (0, 0, word(Stage::Overlay)),
                (0, 1, word(Stage::FromUnderlay)),
                (0, 1, word(Stage::Overlay)),
                (0, 1, word(Stage::ToPod)),
                (1, 1, word(Stage::FromPod)),
                (1, 1, word(Stage::Overlay)),
                (1, 0, word(Stage::FromUnderlay)),
                (1, 0, word(Stage::Overlay)),
                (1, 0, word(Stage::ToPod)),
            ]
        );
    }
}
