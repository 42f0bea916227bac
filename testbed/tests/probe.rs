//! The socket prober, between two namespaces on one wire.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dataplane::wire::Mac;
use testbed::interrupt::Interrupt;
use testbed::link::{End, Links, pair};
use testbed::listen::{self, Client, Listener, Spec};
use testbed::netns::{Guard, Netns};
use testbed::probe::Verdict;
use testbed::probe::sockets::{Dial, Error, dial_all};
use userspace::model::Protocol;

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// On the wire, but nobody's: the neighbour it is said to be takes nothing.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);

/// Two namespaces on one wire, gone when dropped.
fn wire(name: &str) -> (Guard, Guard) {
    let netns = |side: &str| {
        let name = format!("podpath-test-{}-{name}-{side}", std::process::id());
        Netns::create(name).expect("root can make namespaces").guarded()
    };
    let (sender, target) = (netns("a"), netns("b"));
    let end = |netns| End { netns, name: "eth0", mac: None, mtu: 1500, gso_max_size: 65_535 };
    pair(&end(&sender), &end(&target)).expect("the names are free");
    for (netns, address) in [(&sender, SENDER), (&target, TARGET)] {
        let mut links = Links::open(netns).expect("it was just made");
        links.address("eth0", address.into(), 24).expect("the link is there");
        links.up("eth0").expect("the link is there");
    }
    let mut links = Links::open(&sender).expect("it was just made");
    links.wait_up("eth0").expect("both ends are up");
    links.neighbour("eth0", NOBODY.into(), Mac([2, 0, 0, 0, 0, 9])).expect("the link is there");
    (sender, target)
}

/// Echoes on these ports of the target until dropped.
struct Echo {
    client: Client,
    server: Option<std::thread::JoinHandle<()>>,
    directory: PathBuf,
    /// Listeners that the kernel let it open.
    open: usize,
}

impl Echo {
    fn on(netns: &Netns, ports: &[(Protocol, u16)]) -> Self {
        let directory = std::env::temp_dir().join(netns.name());
        std::fs::create_dir(&directory).expect("the name is our own");
        let control = directory.join("listen.sock");
        let listeners = ports.iter().map(|(protocol, port)| Listener {
            netns: netns.name().to_owned(),
            address: TARGET.into(),
            protocol: *protocol,
            port: *port,
            page: None,
        });
        let listeners = listeners.collect();
        let spec = Spec { control: control.clone(), most_connections: 2048, listeners, watch: None };
        let (sender, ready) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let told = |answer: &listen::Answer| {
                sender.send(answer.clone()).expect("the test waits");
                Ok(())
            };
            listen::serve(spec, told).expect("the socket can be made");
        });
        let answer = ready.recv_timeout(Duration::from_secs(10)).expect("it answers");
        assert_eq!(answer.failed, Vec::<String>::new());
        Self { client: Client::at(&control), server: Some(server), directory, open: answer.open }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let stopped = self.client.stop();
        if let (Ok(_), Some(server)) = (stopped, self.server.take()) {
            let _ = server.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn dial(from: &Netns, to: Ipv4Addr, protocol: Protocol, port: u16) -> Dial {
    Dial { netns: from.clone(), source: SENDER.into(), target: SocketAddr::from((to, port)), protocol }
}

/// What became of each.
fn verdicts(dials: &[Dial]) -> Vec<Verdict> {
    let dialled = dial_all(dials, &Interrupt::default()).expect("all can be measured");
    dialled.into_iter().map(|one| one.verdict).collect()
}

#[test]
#[ignore = "needs root: make test"]
fn answered_dropped_and_refused_are_told_apart() {
    let (sender, target) = wire("kinds");
    let _echo = Echo::on(&target, &[(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
    let dials = [
        dial(&sender, TARGET, Protocol::Tcp, 80),
        dial(&sender, NOBODY, Protocol::Tcp, 80),
        dial(&sender, TARGET, Protocol::Tcp, 81),
        dial(&sender, TARGET, Protocol::Udp, 53),
        dial(&sender, NOBODY, Protocol::Udp, 53),
        dial(&sender, TARGET, Protocol::Udp, 54),
    ];
    let kinds = [Verdict::Allow, Verdict::Deny, Verdict::Reject];
    assert_eq!(verdicts(&dials), [kinds, kinds].concat());
}

#[test]
#[ignore = "needs root: make test"]
fn hundreds_of_denied_flows_take_as_long_as_one() {
    let (sender, target) = wire("many");
    let _echo = Echo::on(&target, &[(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
    let (mut dials, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        for (to, verdict) in [(TARGET, Verdict::Allow), (NOBODY, Verdict::Deny)] {
            dials.push(dial(&sender, to, Protocol::Tcp, 80));
            dials.push(dial(&sender, to, Protocol::Udp, 53));
            expected.extend([verdict, verdict]);
        }
    }
    let took = |dials: &[Dial], expected: &[Verdict]| {
        let start = Instant::now();
        assert_eq!(verdicts(dials), expected);
        start.elapsed()
    };
    let one = took(&[dial(&sender, NOBODY, Protocol::Tcp, 80)], &[Verdict::Deny]);
    let all = took(&dials, &expected);
    assert!(all < 3 * one, "{one:?}, and {all:?} for {} flows", dials.len());
}

#[test]
#[ignore = "needs root: make test"]
fn sctp_is_dialled_whether_or_not_the_kernel_speaks_it() {
    let (sender, target) = wire("sctp");
    let echo = Echo::on(&target, &[(Protocol::Sctp, 80)]);
    let spoken = echo.open == 1;
    let dials = [dial(&sender, TARGET, Protocol::Sctp, 80), dial(&sender, NOBODY, Protocol::Sctp, 80)];
    let answered = if spoken { Verdict::Allow } else { Verdict::Reject };
    assert_eq!(verdicts(&dials), [answered, Verdict::Deny]);
}

#[test]
#[ignore = "needs root: make test"]
fn what_cannot_be_measured_is_an_error_and_no_verdict() {
    let (sender, _target) = wire("errors");
    let elsewhere = Dial { source: IpAddr::from([10, 9, 0, 77]), ..dial(&sender, TARGET, Protocol::Tcp, 80) };
    let error = dial_all(&[elsewhere], &Interrupt::default()).expect_err("the address is not the sender's");
    assert!(matches!(error, Error::Socket { .. }), "{error}");
    let missing =
        Dial { netns: Netns::named("podpath-test-missing"), ..dial(&sender, TARGET, Protocol::Tcp, 80) };
    assert!(matches!(dial_all(&[missing], &Interrupt::default()), Err(Error::Netns(_))));
}
