//! Listeners that answer by HTTP: what nodes say on Services' health check node ports. And what an echo says to whoever
//! asks it by HTTP.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use userspace::health;
use userspace::model::{Cluster, Protocol};

use super::{Listener, SILENCE};
use crate::netns::{Netns, Part};

/// How every request begins that is answered.
const REQUEST: &[u8] = b"GET ";
/// How the head of one ends.
const END: &[u8] = b"\r\n\r\n";
/// The longest head that is read.
const LONGEST: usize = 8192;

/// The listeners on the health check node ports of a cluster's nodes.
pub(super) fn health_checks(cluster: &Cluster) -> impl Iterator<Item = Listener> + '_ {
    cluster.nodes.iter().flat_map(|node| {
        let netns = Netns::of(&cluster.name, Part::Node(&node.name)).name().to_owned();
        let pages: Vec<_> = health::pages(cluster, node).collect();
        node.addresses.iter().flat_map(move |address| {
            let netns = netns.clone();
            pages.clone().into_iter().map(move |(port, page)| Listener {
                netns: netns.clone(),
                address: *address,
                protocol: Protocol::Tcp,
                port,
                page: Some(page),
            })
        })
    })
}

/// Answers the one request of a connection with a page.
pub(super) async fn answer(mut stream: TcpStream, page: &str) {
    let mut head = Vec::new();
    let whole = async {
        while !head.windows(END.len()).any(|bytes| bytes == END) && head.len() < LONGEST {
            if !matches!(stream.read_buf(&mut head).await, Ok(length) if length > 0) {
                return false;
            }
        }
        true
    };
    if tokio::time::timeout(SILENCE, whole).await.unwrap_or(false) {
        // Whoever is gone needs no answer.
        let _ = stream.write_all(page.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

/// What an echo gives back of these bytes: themselves, unless they are a request.
pub(super) fn reply(bytes: &[u8]) -> &[u8] {
    if bytes.starts_with(REQUEST) && bytes.ends_with(END) { health::FINE.as_bytes() } else { bytes }
}
