//! Packet paths in this process on real links, with each way of input and output.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use testbed::dataplane::live::{Io, Live, Loss, Out, Path, Refusal, Tally, Wire};
use testbed::dataplane::{Name, Up};
use testbed::link::Links;
use testbed::netns::Netns;
use testbed::topology::{Layout, Topology, host_side};
use testbed::traffic::{self, End, Ends, Limits, Transport};
use userspace::model::{self, Cluster};

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 10.240.0.4}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 10.240.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.1.5, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: default}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.2.7, conditions: [{type: Ready, status: "True"}]}
"#;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 7);

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

fn cluster(name: &str) -> Cluster {
    let text = CLUSTER.replace("NAME", &format!("test-{}-{name}", std::process::id()));
    model::load_text("live.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

fn ends(topology: &Topology) -> Ends {
    let pod = |at: usize| End { netns: topology.pod(&topology.cluster().pods[at]), cpu: None };
    Ends { client: pod(0), server: pod(1), dialled: SocketAddrV4::new(SERVER, 8080), listening: 8080 }
}

/// Waits until `tally` says what `is_right` wants to hear.
fn until(tally: impl Fn() -> Tally, is_right: impl Fn(&Tally) -> bool) -> Tally {
    let begin = Instant::now();
    loop {
        let now = tally();
        if is_right(&now) || begin.elapsed() > PATIENCE {
            assert!(is_right(&now), "{now:?}");
            return now;
        }
        thread::yield_now();
    }
}

/// Every frame that was read was kept, sent, or lost with a reason.
fn adds_up(tally: &Tally) -> bool {
    let lost: u64 = tally.lost.iter().filter(|(why, _)| **why != Loss::Overrun).map(|(_, lost)| lost).sum();
    tally.received == tally.kept + tally.sent + lost
}

/// Sends so many bytes there and back, every one another than those around it.
fn exchange(client: &Netns, server: &Netns, length: usize) {
    let bytes: Vec<u8> = (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
    let listener = server.run(|| TcpListener::bind("0.0.0.0:8080")).expect("it runs").expect("it is free");
    // It holds for accept(2) as well (socket(7)): whoever fails is not waited for without an end.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))
        .expect("it can");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("the client comes");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
            stream.set_write_timeout(Some(PATIENCE)).expect("a time is no zero");
            let mut all = vec![0; length];
            stream.read_exact(&mut all).expect("all arrives");
            stream.write_all(&all).expect("the client reads it");
        });
        let returned = client.run(|| {
            let server = (SERVER, 8080).into();
            let mut stream = TcpStream::connect_timeout(&server, PATIENCE).expect("the server listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
            stream.set_write_timeout(Some(PATIENCE)).expect("a time is no zero");
            stream.write_all(&bytes).expect("the server reads it");
            let mut all = vec![0; length];
            stream.read_exact(&mut all).expect("all comes back");
            all
        });
        assert!(returned.expect("it runs") == bytes, "what came back is not what was sent");
    });
}

/// Whether an echo request is answered.
fn ping(client: &Netns) -> bool {
    // Type 8, its checksum, identifier 7, number 1.
    const REQUEST: [u8; 8] = [8, 0, 0xf7, 0xf7, 0, 7, 0, 1];
    let answered = client.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))?;
        let to = SockaddrIn::from(SocketAddrV4::new(SERVER, 0));
        sendto(socket.as_raw_fd(), &REQUEST, &to, MsgFlags::empty())?;
        let mut answer = [0; 64];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // Behind an IP header: type 0, and what was asked.
        Ok::<_, nix::Error>(answer[20] == 0 && answer[24..length] == REQUEST[4..])
    });
    answered.expect("it runs").unwrap_or(false)
}

fn passes_traffic_and_loses_none(name: Name, io: Io) {
    let up =
        Up::with_io(&cluster(&format!("{name}-{io}")), name, io).unwrap_or_else(|error| panic!("{error}"));
    let ends = ends(up.topology());
    exchange(&ends.client.netns, &ends.server.netns, 2 << 20);
    assert!(ping(&ends.client.netns));
    let before = up.tally();
    let limits = Limits { warm_up: Duration::ZERO, time: PATIENCE, count: 2000 };
    let trips = traffic::request_response(&ends, Transport::Udp, traffic::Requests::of(64), limits);
    let trips = trips.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((trips.histogram.len(), trips.lost), (2000, 0));
    // Each crosses both nodes, there and back.
    let after = until(|| up.tally(), |tally| tally.sent >= before.sent + 4 * 2000 && adds_up(tally));
    assert_eq!(after.lost, before.lost, "nothing is lost at a rate that can be kept up with");
    up.down().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
#[ignore = "needs root: make test"]
fn traffic_passes_the_emulator_by_rings_and_none_is_lost() {
    passes_traffic_and_loses_none(Name::Emulator, Io::Ring);
}

#[test]
#[ignore = "needs root: make test"]
fn traffic_passes_the_emulator_by_plain_sockets_and_none_is_lost() {
    passes_traffic_and_loses_none(Name::Emulator, Io::Plain);
}

#[test]
#[ignore = "needs root: make test"]
fn traffic_passes_chains_by_rings_and_none_is_lost() {
    passes_traffic_and_loses_none(Name::Chains, Io::Ring);
}

#[test]
#[ignore = "needs root: make test"]
fn traffic_passes_chains_by_plain_sockets_and_none_is_lost() {
    passes_traffic_and_loses_none(Name::Chains, Io::Plain);
}

#[test]
#[ignore = "needs root: make test"]
fn traffic_passes_the_bare_loop_and_none_is_lost() {
    Io::ALL.into_iter().for_each(|io| passes_traffic_and_loses_none(Name::Bare, io));
}

/// Whether [`Stuck`] goes on.
static OPEN: AtomicBool = AtomicBool::new(true);

/// A path that takes a frame only when it is let.
struct Stuck;

/// Lets [`Stuck`] go on when it is dropped, whatever fails: who stops a node waits for the frame that its path has.
struct Shut;

impl Shut {
    fn now() -> Self {
        OPEN.store(false, Ordering::Release);
        Self
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        OPEN.store(true, Ordering::Release);
    }
}

impl Path for Stuck {
    fn new(_: &Cluster, _: &str) -> Result<Self, Refusal> {
        Ok(Self)
    }
    fn apply(&mut self, _: &Cluster, _: &str) -> Result<(), Refusal> {
        Ok(())
    }
    fn pass(&mut self, at: Wire, frame: &[u8], _: Duration, out: &mut Out) {
        while !OPEN.load(Ordering::Acquire) {
            thread::yield_now();
        }
        if matches!(at, Wire::Pod(_)) && frame.get(12..14) == Some(&[8, 0]) {
            // There is no such pod.
            out.send(Wire::Pod(Ipv4Addr::UNSPECIFIED.into()), frame);
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn what_a_busy_path_has_no_room_for_is_counted_and_so_is_what_has_no_link() {
    const FRAMES: u64 = 16_000;
    for io in Io::ALL {
        let cluster = cluster(&format!("stuck-{io}"));
        let topology = Topology::build(&cluster, Layout::USERSPACE).unwrap_or_else(|error| panic!("{error}"));
        let live = Live::<Stuck>::start(&topology, io).unwrap_or_else(|error| panic!("{error}"));
        // Only now: a link is opened between two frames, and the fabric's bridge asks for listeners at once.
        let shut = Shut::now();
        let ends = ends(&topology);
        // As long as they come: room is counted in bytes.
        let mut frame = vec![0; 1400];
        frame[12] = 8;
        let limits = Limits { warm_up: Duration::ZERO, time: PATIENCE, count: FRAMES };
        let flooded = traffic::forward(&ends, &[frame], limits);
        assert!(flooded.is_err(), "{io}: {flooded:?}");
        drop(shut);
        let count = |tally: &Tally, why| tally.lost.get(&why).copied().unwrap_or(0);
        let all = |tally: &Tally| count(tally, Loss::NoLink) + count(tally, Loss::Overrun);
        let tally = until(|| live.tally(), |tally| all(tally) >= FRAMES && adds_up(tally));
        assert_eq!(all(&tally), FRAMES, "{io}: {tally:?}");
        assert!(count(&tally, Loss::Overrun) > 0 && count(&tally, Loss::NoLink) > 0, "{io}: {tally:?}");
        drop(live);
        topology.delete().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Takes a link up or down.
fn set_up(netns: &Netns, link: &str, up: bool) {
    let change = || {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
        // SAFETY: all-zero bytes are a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(link.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as libc::c_short } else { 0 };
        // SAFETY: the kernel reads one request, which outlives the call.
        let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        nix::errno::Errno::result(set)
    };
    netns.run(change).expect("it runs").expect("the link is there");
}

/// The longest frame that [`Long`] was shown.
static LONGEST: AtomicUsize = AtomicUsize::new(0);

/// A path that measures frames, and keeps them.
struct Long;

impl Path for Long {
    fn new(_: &Cluster, _: &str) -> Result<Self, Refusal> {
        Ok(Self)
    }
    fn apply(&mut self, _: &Cluster, _: &str) -> Result<(), Refusal> {
        Ok(())
    }
    fn pass(&mut self, _: Wire, frame: &[u8], _: Duration, _: &mut Out) {
        LONGEST.fetch_max(frame.len(), Ordering::AcqRel);
    }
}

/// Sets how long a packet may be on a link, in bytes.
fn set_mtu(netns: &Netns, link: &str, mtu: libc::c_int) {
    let change = || {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
        // SAFETY: all-zero bytes are a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(link.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_mtu = mtu;
        // SAFETY: the kernel reads one request, which outlives the call.
        let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) };
        nix::errno::Errno::result(set)
    };
    netns.run(change).expect("it runs").expect("the link is there");
}

#[test]
#[ignore = "needs root: make test"]
fn a_link_whose_mtu_was_raised_is_read_in_whole_frames() {
    const LENGTH: usize = 5000;
    for io in Io::ALL {
        let cluster = cluster(&format!("wide-{io}"));
        let layout = Layout { answers_arp: false, ..Layout::USERSPACE };
        let topology = Topology::build(&cluster, layout).unwrap_or_else(|error| panic!("{error}"));
        let live = Live::<Long>::start(&topology, io).unwrap_or_else(|error| panic!("{error}"));
        let client = ends(&topology).client.netns;
        set_mtu(&topology.node("n1"), &host_side(&cluster.pods[0]), 6000);
        set_mtu(&client, "eth0", 6000);
        let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).expect("it runs").expect("a port is free");
        let arrives = || {
            LONGEST.store(0, Ordering::Release);
            let begin = Instant::now();
            while LONGEST.load(Ordering::Acquire) < LENGTH {
                assert!(begin.elapsed() < PATIENCE, "{io}: {:?}", live.tally());
                socket.send_to(&[0; LENGTH], (SERVER, 9)).expect("it fits");
                thread::yield_now();
            }
        };
        let too_long = || live.tally().lost.get(&Loss::TooLong).copied().unwrap_or(0);
        arrives();
        let lost = too_long();
        arrives();
        assert_eq!(too_long(), lost, "{io}");
        drop(live);
        topology.delete().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_link_of_an_idle_node_goes_down_and_away_and_nobody_waits_for_it() {
    for io in Io::ALL {
        let cluster = cluster(&format!("away-{io}"));
        let up = Up::with_io(&cluster, Name::Bare, io).unwrap_or_else(|error| panic!("{error}"));
        let (node, link) = (up.topology().node("n1"), host_side(&cluster.pods[0]));
        let (told, tells) = mpsc::channel();
        // In a thread of its own: what waits for ever fails the test and does not hang it.
        thread::spawn(move || {
            set_up(&node, &link, false);
            up.tally();
            Links::open(&node).and_then(|mut links| links.delete(&link)).expect("it is there");
            up.tally();
            up.down().unwrap_or_else(|error| panic!("{error}"));
            told.send(()).expect("somebody listens");
        });
        tells.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{io}: {error}"));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_link_that_was_down_is_read_again() {
    for io in Io::ALL {
        let cluster = cluster(&format!("again-{io}"));
        let up = Up::with_io(&cluster, Name::Emulator, io).unwrap_or_else(|error| panic!("{error}"));
        let (ends, node) = (ends(up.topology()), up.topology().node("n1"));
        let link = host_side(&cluster.pods[0]);
        assert!(ping(&ends.client.netns), "{io}");
        set_up(&node, &link, false);
        set_up(&node, &link, true);
        Links::open(&node).and_then(|mut links| links.wait_up(&link)).expect("it comes up");
        assert!(ping(&ends.client.netns), "{io}");
        up.down().unwrap_or_else(|error| panic!("{error}"));
    }
}
