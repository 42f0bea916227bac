//! A cluster on `ebpf` between real namespaces, and servers in its pods that say who they are.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use testbed::dataplane::{Name, Up};
use testbed::listen::{self, Client, Listener};
use testbed::netns::Netns;
use testbed::witness::{Seen, Watch, Witness};
use userspace::fabric::Report;
use userspace::model::{Backend, Cluster, Protocol, Service, load_text};

/// Longer than any answer takes here, a lost first packet included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long it is waited for an answer that must not come: longer than one takes, and than Linux waits before it
/// sends a SYN again.
pub(crate) const SILENCE: Duration = Duration::from_millis(1500);
/// How often servers look whether they are to end.
const GLANCE: Duration = Duration::from_millis(50);

/// How often it is looked whether something has come to be.
const PAUSE: Duration = Duration::from_millis(5);

/// A host outside.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// Another.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// The cluster address of the Service `api`.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The port of the Service, TCP and UDP.
pub(crate) const PORT: u16 = 80;
/// Its node port.
pub(crate) const NODE_PORT: u16 = 30_080;
/// The port that its endpoints listen on.
pub(crate) const TARGET: u16 = 8080;

/// Two nodes: the client `web` and the endpoint `near` on the first; the endpoints `far` and `spare` on the second.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2, model: MODEL, encapsulation: geneve}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: other}
spec: {address: 198.51.100.9}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: spare, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  selector: {app: api}
  ports:
    - {name: tcp, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30080}
"#;

/// The cluster that tests change to their liking.
pub(crate) fn described(test: &str, model: &str) -> Cluster {
    with_objects(test, model, "")
}

/// The same, and more objects.
pub(crate) fn with_objects(test: &str, model: &str, objects: &str) -> Cluster {
    let name = format!("test-{}-{test}", std::process::id());
    let text = CLUSTER.replace("NAME", &name).replace("MODEL", model) + objects;
    load_text(test, &text).unwrap_or_else(|error| panic!("{error}"))
}

/// Only these of its pods back the Service, in this order; all of them ready.
pub(crate) fn back(cluster: &mut Cluster, pods: &[&str]) {
    let backends: Vec<Backend> = pods.iter().map(|pod| backend(cluster, pod)).collect();
    service(cluster).ports.iter_mut().for_each(|port| port.backends.clone_from(&backends));
}

/// A pod of the cluster as an endpoint that is ready.
pub(crate) fn backend(cluster: &Cluster, pod: &str) -> Backend {
    let pod = cluster.pod(&format!("default/{pod}")).expect("the cluster has it");
    Backend { node: Some(pod.node.clone()), ..Backend::new(pod.address(), TARGET) }
}

/// An endpoint that answers, but is on its way out.
pub(crate) fn leaving(mut backend: Backend) -> Backend {
    (backend.ready, backend.serving, backend.terminating) = (false, true, true);
    backend
}

/// The Service.
pub(crate) fn service(cluster: &mut Cluster) -> &mut Service {
    cluster.services.iter_mut().find(|service| service.name == "api").expect("it is in the text")
}

/// A cluster that is up, watched from the world, with a server in each of the Service's pods; and on nodes one at
/// each health check node port.
pub(crate) struct Stage {
    up: Up,
    witness: RefCell<Witness>,
    servers: Vec<Server>,
    checks: Option<Checks>,
}

impl Stage {
    /// Brings it up, with servers in its pods but for `web`.
    pub(crate) fn up(cluster: &Cluster) -> Self {
        let up = Up::new(cluster, Name::Ebpf).unwrap_or_else(|error| panic!("{error}"));
        let witness = Witness::open(Watch::over(cluster)).unwrap_or_else(|error| panic!("{error}"));
        let witness = RefCell::new(witness);
        let checks = Checks::up(cluster);
        let mut stage = Self { up, witness, servers: Vec::new(), checks };
        for pod in cluster.pods.iter().filter(|pod| pod.name != "web") {
            stage.serve(&pod.name, TARGET);
        }
        stage
    }

    /// Goes on with the cluster's Services as they are in `after`.
    pub(crate) fn change(&mut self, after: &Cluster) {
        self.up.change_services(after).unwrap_or_else(|error| panic!("{error}"));
        if let Some(checks) = &mut self.checks {
            checks.change(after);
        }
    }

    /// What the fabric did so far; on a bridge its load balancer.
    pub(crate) fn report(&self) -> Report {
        self.up.fabric().expect("it is not all the kernel's").report().expect("it can be read")
    }

    /// Waits until something is so, and watches the world meanwhile; says whether it came to be.
    pub(crate) fn until(&self, deadline: Duration, mut so: impl FnMut() -> bool) -> bool {
        until(deadline, || {
            self.look();
            so()
        })
    }

    /// Looks whether anything came to the world that must not: what is not looked at in time is not seen.
    fn look(&self) {
        let mut witness = self.witness.borrow_mut();
        let seen = witness.look().expect("it hears");
        assert_eq!(*seen, Seen::default(), "nothing leaves with a pod's address");
    }

    /// A server in a pod, of both protocols at one port.
    pub(crate) fn serve(&mut self, pod: &str, port: u16) {
        let (netns, address) = self.place(pod);
        self.servers.push(Server::start(pod, &netns, SocketAddr::new(address, port)));
    }

    /// Ends the servers of a pod.
    pub(crate) fn silence(&mut self, pod: &str) {
        self.servers.retain(|server| server.name != pod);
    }

    /// The namespace and address of a pod; of a node (`n1`); of a host outside.
    pub(crate) fn place(&self, name: &str) -> (Netns, IpAddr) {
        let (topology, cluster) = (self.up.topology(), self.up.topology().cluster());
        if let Some(node) = cluster.node(name) {
            return (topology.node(name), node.address());
        }
        if let Some(external) = cluster.external(name) {
            return (topology.world(), external.address);
        }
        let pod = cluster.pod(&format!("default/{name}")).expect("the cluster has it");
        (topology.pod(pod), pod.address())
    }

    /// The address of a pod, a node, or a host outside.
    pub(crate) fn address(&self, name: &str) -> IpAddr {
        self.place(name).1
    }

    /// The node port at a node.
    pub(crate) fn node_port(&self, node: &str) -> SocketAddr {
        SocketAddr::new(self.address(node), NODE_PORT)
    }

    /// Says a word over a new connection, or in a datagram, and hears who answers and whom he saw.
    #[track_caller]
    pub(crate) fn ask(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Heard {
        let asked = self.try_ask(from, protocol, to, PATIENCE);
        asked.unwrap_or_else(|error| panic!("{from} to {to}/{protocol}: {error}"))
    }

    /// The same, if there is an answer in time.
    pub(crate) fn try_ask(
        &self,
        from: &str,
        protocol: Protocol,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Heard> {
        match protocol {
            Protocol::Tcp => self.call(from, 0, to, patience)?.say(b"who"),
            _ => {
                let socket = self.socket(from, 0, patience);
                socket.connect(to)?;
                datagram(&socket, b"who")
            }
        }
    }

    /// A TCP connection from a port; from any if it is 0.
    pub(crate) fn call(&self, from: &str, port: u16, to: SocketAddr, patience: Duration) -> io::Result<Talk> {
        self.caller(from).call(port, to, patience)
    }

    /// Somebody who dials by himself, from any thread.
    pub(crate) fn caller(&self, from: &str) -> Caller {
        let (netns, address) = self.place(from);
        Caller { netns, address }
    }

    /// A UDP socket at a port; at any if it is 0.
    #[track_caller]
    pub(crate) fn socket(&self, at: &str, port: u16, patience: Duration) -> UdpSocket {
        let (netns, address) = self.place(at);
        let socket = inside(&netns, || UdpSocket::bind((address, port))).expect("the port is free");
        socket.set_read_timeout(Some(patience)).expect("it is not zero");
        socket
    }

    /// Who answers so many new flows, each at most once a name.
    #[track_caller]
    pub(crate) fn answering(
        &self,
        from: &str,
        protocol: Protocol,
        to: SocketAddr,
        flows: usize,
    ) -> Vec<String> {
        let mut names: Vec<String> = (0..flows).map(|_| self.ask(from, protocol, to).name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What fails already need not fail twice.
        if !thread::panicking() {
            self.look();
        }
    }
}

/// What answers on nodes at Services' health check node ports, until it is dropped.
struct Checks {
    client: Client,
    open: Vec<Listener>,
    thread: Option<JoinHandle<()>>,
    /// Of its control socket.
    _directory: tempfile::TempDir,
}

impl Checks {
    /// Those of a cluster, if it has any.
    fn up(cluster: &Cluster) -> Option<Self> {
        let open = Self::of(cluster);
        if open.is_empty() {
            return None;
        }
        let directory = tempfile::tempdir().expect("there is room");
        let control = directory.path().join("listen.sock");
        let client = Client::at(&control);
        let spec = listen::Spec { control, most_connections: 64, listeners: open.clone(), watch: None };
        let (tell, ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let ready = |answer: &listen::Answer| {
                tell.send(answer.clone()).expect("it is waited for");
                Ok(())
            };
            listen::serve(spec, ready).unwrap_or_else(|error| panic!("{error}"));
        });
        let failed = ready.recv_timeout(PATIENCE).expect("it serves").failed;
        assert_eq!(failed, Vec::<String>::new());
        Some(Self { client, open, thread: Some(thread), _directory: directory })
    }

    fn of(cluster: &Cluster) -> Vec<Listener> {
        listen::declared(cluster).into_iter().filter(|listener| listener.page.is_some()).collect()
    }

    /// What nodes say from now on.
    fn change(&mut self, after: &Cluster) {
        let after = Self::of(after);
        let gone = self.open.iter().filter(|listener| !after.contains(listener)).cloned().collect();
        self.client.remove(gone).expect("it answers");
        let failed = self.client.add(after.clone()).expect("it answers").failed;
        assert_eq!(failed, Vec::<String>::new());
        self.open = after;
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        // What fails here was told already.
        let _ = self.client.stop();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The pod that answers.
    pub(crate) name: String,
    /// Whom it saw.
    pub(crate) client: SocketAddr,
    /// What it was told.
    pub(crate) body: Vec<u8>,
}

impl Heard {
    fn line(name: &str, client: SocketAddr) -> Vec<u8> {
        format!("{name} {client}\n").into_bytes()
    }

    fn read(bytes: &[u8]) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "that is no server's answer");
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(broken)?;
        let line = std::str::from_utf8(&bytes[..end]).map_err(|_| broken())?;
        let (name, client) = line.split_once(' ').ok_or_else(broken)?;
        let client = client.parse().map_err(|_| broken())?;
        Ok(Self { name: name.to_owned(), client, body: bytes[end + 1..].to_vec() })
    }
}

/// Somebody who dials.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    netns: Netns,
    address: IpAddr,
}

impl Caller {
    /// A TCP connection from a port; from any if it is 0.
    pub(crate) fn call(&self, port: u16, to: SocketAddr, patience: Duration) -> io::Result<Talk> {
        inside(&self.netns, || dial(SocketAddr::new(self.address, port), to, patience)).map(Talk)
    }
}

/// A TCP connection to a server: words go in frames, each after its length.
#[derive(Debug)]
pub(crate) struct Talk(TcpStream);

impl Talk {
    /// Says something, and hears the answer.
    pub(crate) fn say(&mut self, body: &[u8]) -> io::Result<Heard> {
        // Both directions at one time: nobody's buffer need hold all of it.
        let mut sending = self.0.try_clone()?;
        thread::scope(|scope| {
            let sent = scope.spawn(move || write_frame(&mut sending, body));
            let heard = read_frame(&mut self.0)?;
            sent.join().expect("it does not panic")?;
            Heard::read(&heard)
        })
    }
}

fn write_frame(stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).expect("it is short enough");
    stream.write_all(&[&length.to_be_bytes(), body].concat())
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// One datagram, and its answer.
pub(crate) fn datagram(socket: &UdpSocket, body: &[u8]) -> io::Result<Heard> {
    socket.send(body)?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer)?;
    Heard::read(&answer[..length])
}

/// What is inside of a namespace that is there.
fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    netns.run(work).unwrap_or_else(|error| panic!("{error}"))
}

fn dial(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    let (s, us) = (patience.as_secs() as i64, i64::from(patience.subsec_micros()));
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(s, us))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(s, us))?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// Answers at one port, by TCP and UDP, until it is dropped.
struct Server {
    name: String,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(name: &str, netns: &Netns, at: SocketAddr) -> Self {
        let listening = inside(netns, || {
            let socket =
                socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            // It holds for accept(2) as well (socket(7)).
            setsockopt(
                &socket,
                sockopt::ReceiveTimeout,
                &TimeVal::new(0, i64::from(GLANCE.subsec_micros())),
            )?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
            listen(&socket, Backlog::new(64)?)?;
            Ok((TcpListener::from(socket), UdpSocket::bind(at)?))
        });
        let (tcp, udp) = listening.unwrap_or_else(|error| panic!("{name} at {at}: {error}"));
        udp.set_read_timeout(Some(GLANCE)).expect("it is not zero");
        let over = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let (name, over) = (name.to_owned(), over.clone());
                move || accept(&name, &tcp, &over)
            }),
            thread::spawn({
                let (name, over) = (name.to_owned(), over.clone());
                move || answer(&name, &udp, &over)
            }),
        ];
        Self { name: name.to_owned(), over, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic is printed already.
            let _ = thread.join();
        }
    }
}

/// Takes connections. Those that stand are served until their clients have enough, or nobody listens any more.
fn accept(name: &str, listener: &TcpListener, over: &Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        let Ok((stream, client)) = listener.accept() else { continue };
        let (name, over) = (name.to_owned(), over.clone());
        thread::spawn(move || converse(&name, stream, client, &over));
    }
}

fn converse(name: &str, mut stream: TcpStream, client: SocketAddr, over: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(GLANCE));
    while !over.load(Ordering::Relaxed) {
        // Nothing said yet is no reason to go; a word that has begun is waited for.
        match stream.peek(&mut [0]) {
            Ok(1..) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            _ => return,
        }
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let Ok(body) = read_frame(&mut stream) else { return };
        let answer = [Heard::line(name, client), body].concat();
        if write_frame(&mut stream, &answer).is_err() {
            return;
        }
        let _ = stream.set_read_timeout(Some(GLANCE));
    }
}

fn answer(name: &str, socket: &UdpSocket, over: &AtomicBool) {
    let mut body = vec![0; 65_535];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut body) else { continue };
        // Whoever is gone again is not waited for.
        let _ = socket.send_to(&[Heard::line(name, client), body[..length].to_vec()].concat(), client);
    }
}

/// Waits until something is so, or gives up: says whether it came to be.
pub(crate) fn until(deadline: Duration, mut so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if so() {
            return true;
        }
        if begun.elapsed() > deadline {
            return false;
        }
        // Whoever is waited for needs the machine as well.
        thread::park_timeout(PAUSE);
    }
}
