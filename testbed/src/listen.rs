//! Somebody to talk to: one process that listens in every pod and every host outside, and echoes.
//!
//! A socket stays in the namespace it was opened in, so sockets of all namespaces are served by one
//! thread. What is not listened on is answered by the kernel, as it would be in a container: with a
//! reset, or with ICMP.
//!
//! The process is told what to do in lines of JSON ([`crate::control`]): a [`Spec`] as the first line of
//! its input, then [`Request`]s over a unix socket. It answers each with an [`Answer`] when it is done, and
//! not before: who has the answer can dial.
//!
//! **Invariant:** memory is bounded. There are at most [`Spec::most_connections`] connections, of 16 KiB
//! each; those that come later wait, one per listener and the rest in the kernel's queue. Silence ends a connection.

mod http;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt,
    socket, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use userspace::model::{Cluster, ContainerPort, Protocol};

use crate::control::{self, Control, read_line, write_line};
use crate::netns::{Netns, Part};
use crate::state;
use crate::topology::pod_netns;
use crate::witness::{Seen, Watch, Watching};

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(300);
/// How long the kernel's queues are, for bursts of connections.
const BACKLOG: i32 = 4096;
/// Bytes that one connection reads at a time.
const READ: usize = 16 * 1024;
/// The longest UDP payload.
const DATAGRAM: usize = 65_535;

/// Why there is nobody to talk to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process could not be started, or does not answer.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The process itself cannot go on.
    #[error("cannot serve: {0}")]
    Serve(#[from] io::Error),
}

/// One port of one address in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// The namespace's name.
    pub netns: String,
    /// The address; datagrams are answered from it.
    pub address: IpAddr,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// 1 to 65,535.
    pub port: u16,
    /// What it answers by HTTP, whatever it is asked; it echoes if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

/// What a server is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Where it takes requests: the path of a unix socket, which it makes.
    pub control: PathBuf,
    /// Connections at one time, over all listeners.
    pub most_connections: usize,
    /// What it opens before it answers for the first time.
    pub listeners: Vec<Listener>,
    /// What it watches beside: see [`crate::witness`].
    pub watch: Option<Watch>,
}

/// What a running server can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Open these; one that is open stays so.
    Add(Vec<Listener>),
    /// Close these, and their connections; one that is not open is fine.
    Remove(Vec<Listener>),
    /// Go on watching, a cluster that has changed.
    Watch(Watch),
    /// Say what was seen.
    Seen,
    /// Close everything and end.
    Stop,
}

/// What a server says when it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Listeners that are open now.
    pub open: usize,
    /// Protocols asked for that this kernel does not speak; their listeners are left out.
    pub unsupported: Vec<Protocol>,
    /// What else could not be opened, a sentence each.
    pub failed: Vec<String>,
    /// What was seen so far, if that was asked and something is watched.
    #[serde(default)]
    pub seen: Option<Seen>,
}

/// The listeners that a cluster's pods and externals declare, and those of nodes' health check node ports, each once.
///
/// An external that declares no ports answers on every port; whoever dials it asks for the ports it
/// means to dial ([`Client::add`] with [`external`]).
pub fn declared(cluster: &Cluster) -> Vec<Listener> {
    let pods = cluster.pods.iter().flat_map(|pod| {
        let netns = pod_netns(&cluster.name, pod);
        let ends =
            pod.addresses.iter().flat_map(|address| pod.ports.iter().map(move |port| (*address, port)));
        ends.map(move |(address, port)| listener(&netns, address, port))
    });
    let externals = cluster.externals.iter().flat_map(|external| {
        let netns = Netns::of(&cluster.name, Part::World);
        external.ports.iter().map(move |port| listener(&netns, external.address, port))
    });
    // Pods of one host network may declare the same port.
    let mut seen = HashSet::new();
    pods.chain(externals)
        .chain(http::health_checks(cluster))
        .filter(|listener| seen.insert(listener.clone()))
        .collect()
}

/// A port of a host outside the cluster.
pub fn external(cluster: &Cluster, address: IpAddr, protocol: Protocol, port: u16) -> Listener {
    let netns = Netns::of(&cluster.name, Part::World).name().to_owned();
    Listener { netns, address, protocol, port, page: None }
}

fn listener(netns: &Netns, address: IpAddr, port: &ContainerPort) -> Listener {
    let netns = netns.name().to_owned();
    Listener { netns, address, protocol: port.protocol, port: port.port, page: None }
}

/// Where a running server is asked.
#[derive(Clone, Debug)]
pub struct Client {
    control: Control,
}

impl Client {
    /// Starts a server with `command`, which is to run [`serve_from_stdin`], and waits until it listens.
    /// `note` gets the process's number before the process does anything. The server outlives us; what
    /// it has to say goes to a file beside its socket.
    ///
    /// # Errors
    /// It cannot be started or noted, or it does not answer. Then no process is left.
    pub fn start(
        command: Command,
        spec: &Spec,
        note: impl FnOnce(u32) -> Result<(), state::Error>,
    ) -> Result<(Self, Answer), Error> {
        let client = Self::at(&spec.control);
        let answer = client.control.start(command, spec, note)?;
        Ok((client, answer))
    }

    /// The server that takes requests there.
    pub fn at(control: &Path) -> Self {
        Self { control: Control::new("the listeners", control) }
    }

    /// Opens listeners. They can be dialed when this returns.
    ///
    /// # Errors
    /// [`control::Error::Ask`]; listeners that cannot be opened are in the answer.
    pub fn add(&self, listeners: Vec<Listener>) -> Result<Answer, Error> {
        self.ask(&Request::Add(listeners))
    }

    /// Closes listeners and their connections. They are closed when this returns.
    ///
    /// # Errors
    /// [`control::Error::Ask`].
    pub fn remove(&self, listeners: Vec<Listener>) -> Result<Answer, Error> {
        self.ask(&Request::Remove(listeners))
    }

    /// Goes on watching, a cluster that has changed. Nothing happens if nothing was watched.
    ///
    /// # Errors
    /// [`Error::Ask`].
    pub fn watch(&self, watch: Watch) -> Result<Answer, Error> {
        self.ask(&Request::Watch(watch))
    }

    /// What was seen in the world until now; none if nothing is watched.
    ///
    /// # Errors
    /// [`Error::Ask`].
    pub fn seen(&self) -> Result<Option<Seen>, Error> {
        Ok(self.ask(&Request::Seen)?.seen)
    }

    /// Ends the server. Everything is closed when this returns.
    ///
    /// # Errors
    /// [`control::Error::Ask`].
    pub fn stop(&self) -> Result<Answer, Error> {
        self.ask(&Request::Stop)
    }

    fn ask(&self, request: &Request) -> Result<Answer, Error> {
        Ok(self.control.ask(request)?)
    }
}

/// Runs a server: reads the [`Spec`] from standard input, writes the first [`Answer`] to standard
/// output, and serves until it is stopped. Ends at once if the input ends without a spec.
///
/// # Errors
/// The input is no spec, or the control socket cannot be made.
pub fn serve_from_stdin() -> Result<(), Error> {
    let spec = match read_line::<Spec>(&mut io::stdin().lock()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        spec => spec?,
    };
    serve(spec, |answer| write_line(&mut io::stdout().lock(), answer))
}

/// Runs a server on this thread until it is asked to stop. `ready` is called when all of the spec's
/// listeners are open and requests are taken.
///
/// # Errors
/// The control socket cannot be made, or `ready` failed.
pub fn serve(spec: Spec, ready: impl FnOnce(&Answer) -> io::Result<()>) -> Result<(), Error> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut server = Server::new(spec.most_connections);
        let mut answer = server.add(spec.listeners).await;
        match spec.watch.map(Watching::begin).transpose() {
            Ok(watching) => server.watching = watching,
            Err(error) => answer.failed.push(error.to_string()),
        }
        // One that a killed server left behind.
        let _ = std::fs::remove_file(&spec.control);
        let control = UnixListener::bind(&spec.control)?;
        ready(&answer)?;
        let server = Arc::new(Mutex::new(server));
        let (stop, mut stopped) = mpsc::channel(1);
        loop {
            tokio::select! {
                _ = stopped.recv() => break,
                accepted = control.accept() => {
                    let (stream, _) = accepted?;
                    tokio::spawn(converse(stream, server.clone(), stop.clone()));
                }
            }
        }
        let _ = std::fs::remove_file(&spec.control);
        Ok(())
    })
}

/// Answers the requests of one connection to the control socket, in order.
async fn converse(stream: tokio::net::UnixStream, server: Arc<Mutex<Server>>, stop: mpsc::Sender<()>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let request = serde_json::from_str::<Request>(&line);
        let stops = matches!(request, Ok(Request::Stop));
        let mut server = server.lock().await;
        let answer = match request {
            Ok(Request::Add(listeners)) => server.add(listeners).await,
            Ok(Request::Remove(listeners)) => server.remove(listeners).await,
            Ok(Request::Watch(watch)) => server.watch(Some(watch)),
            Ok(Request::Seen) => server.watch(None),
            Ok(Request::Stop) => {
                let all = server.open.keys().cloned().collect();
                server.remove(all).await
            }
            Err(error) => server.answer([], vec![format!("cannot read the request: {error}")]),
        };
        drop(server);
        // Answers are plain data; writing fails only if nobody listens any more.
        let line = serde_json::to_string(&answer).unwrap_or_default() + "\n";
        let written = writer.write_all(line.as_bytes()).await;
        if stops {
            let _ = stop.send(()).await;
        }
        if written.is_err() {
            return;
        }
    }
}

/// The sockets that are open.
struct Server {
    open: HashMap<Listener, Served>,
    permits: Arc<Semaphore>,
    watching: Option<Watching>,
    /// Protocols that were reported as not spoken here.
    reported: HashSet<Protocol>,
}

/// One listener's task, which ends when told and takes its connections along.
struct Served {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    fn new(most_connections: usize) -> Self {
        let permits = most_connections.clamp(1, Semaphore::MAX_PERMITS);
        let (open, reported) = (HashMap::new(), HashSet::new());
        Self { open, permits: Arc::new(Semaphore::new(permits)), watching: None, reported }
    }

    /// Opens what is not open yet.
    async fn add(&mut self, mut listeners: Vec<Listener>) -> Answer {
        listeners.retain(|listener| !self.open.contains_key(listener));
        // The namespaces are entered on threads made for it, and waited for on one that may wait.
        let opened = tokio::task::spawn_blocking(|| open_all(listeners)).await;
        let mut failed = Vec::new();
        let mut unsupported = HashSet::new();
        for (listener, socket) in opened.unwrap_or_default() {
            match socket.and_then(|socket| self.serve(&listener, socket)) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                    unsupported.insert(listener.protocol);
                }
                Err(error) => failed.push(sentence(&listener, &error)),
            }
        }
        self.answer(unsupported, failed)
    }

    /// Closes what is open of these, and waits until it is.
    async fn remove(&mut self, listeners: Vec<Listener>) -> Answer {
        let served: Vec<Served> =
            listeners.iter().filter_map(|listener| self.open.remove(listener)).collect();
        for Served { stop, task } in served {
            drop(stop);
            // A task that panicked is closed as well.
            let _ = task.await;
        }
        self.answer([], Vec::new())
    }

    /// Has another cluster watched, if one is given, and says what was seen.
    fn watch(&mut self, watch: Option<Watch>) -> Answer {
        let Some(watching) = &self.watching else { return self.answer([], Vec::new()) };
        let seen = watch.map_or(Ok(()), |watch| watching.change(watch)).and_then(|()| watching.seen());
        match seen {
            Ok(seen) => Answer { seen: Some(seen), ..self.answer([], Vec::new()) },
            Err(error) => self.answer([], vec![format!("cannot watch the world: {error}")]),
        }
    }

    fn answer(&mut self, unsupported: impl IntoIterator<Item = Protocol>, failed: Vec<String>) -> Answer {
        let mut unsupported: Vec<Protocol> = unsupported.into_iter().collect();
        unsupported.sort();
        for protocol in &unsupported {
            if self.reported.insert(*protocol) {
                tracing::warn!("this kernel does not speak {protocol}: nobody listens there");
            }
        }
        Answer { open: self.open.len(), unsupported, failed, seen: None }
    }

    /// Starts the task of one listener.
    fn serve(&mut self, listener: &Listener, socket: OwnedFd) -> io::Result<()> {
        let (stop, stopped) = oneshot::channel();
        let task = match listener.protocol {
            Protocol::Udp => tokio::spawn(echo_datagrams(UdpSocket::from_std(socket.into())?, stopped)),
            // A one-to-one SCTP socket is used as a TCP socket is (RFC 6458, section 4).
            Protocol::Tcp | Protocol::Sctp => {
                let socket = TcpListener::from_std(socket.into())?;
                tokio::spawn(accept_all(socket, (self.permits.clone(), listener.page.clone()), stopped))
            }
        };
        self.open.insert(listener.clone(), Served { stop, task });
        Ok(())
    }
}

fn sentence(listener: &Listener, error: &io::Error) -> String {
    let Listener { netns, address, protocol, port, .. } = listener;
    format!("cannot listen on {address}:{port}/{protocol} in {netns}: {error}")
}

/// Opens a socket for each, one thread after the other in each namespace.
fn open_all(listeners: Vec<Listener>) -> Vec<(Listener, io::Result<OwnedFd>)> {
    let mut by_netns: BTreeMap<String, Vec<Listener>> = BTreeMap::new();
    for listener in listeners {
        by_netns.entry(listener.netns.clone()).or_default().push(listener);
    }
    let mut all = Vec::new();
    for (netns, listeners) in by_netns {
        match Netns::named(netns).run(|| listeners.iter().map(open).collect::<Vec<_>>()) {
            Ok(sockets) => all.extend(listeners.into_iter().zip(sockets)),
            Err(error) => {
                let why = error.to_string();
                all.extend(listeners.into_iter().map(|one| (one, Err(io::Error::other(why.clone())))));
            }
        }
    }
    all
}

/// Opens one socket in the calling thread's namespace.
fn open(listener: &Listener) -> io::Result<OwnedFd> {
    let family = match listener.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let (kind, protocol) = match listener.protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    if kind == SockType::Stream {
        // A port whose last connections linger can be listened on again.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    let address = SocketAddr::new(listener.address, listener.port);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}

/// Takes connections until told to stop; then ends those it took.
async fn accept_all(
    listener: TcpListener,
    (permits, page): (Arc<Semaphore>, Option<String>),
    mut stopped: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
            stream = accept(&listener) => stream,
        };
        // One that is taken waits for its permit here, and those after it in the kernel's queue. The
        // permit comes last: a listener that waits for somebody to come must not hold one.
        let permit = tokio::select! {
            _ = &mut stopped => break,
            permit = permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        match page.clone() {
            Some(page) => connections.spawn(async move {
                http::answer(stream, &page).await;
                drop(permit);
            }),
            None => connections.spawn(echo(stream, permit)),
        };
    }
    connections.shutdown().await;
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // It was gone before we took it, or we have too many files: others end in time.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Gives back every byte of one connection, and its end.
async fn echo(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    // Requests and responses must not wait for one another's acknowledgements.
    let _ = stream.set_nodelay(true);
    let mut bytes = vec![0; READ];
    loop {
        match tokio::time::timeout(SILENCE, stream.read(&mut bytes)).await {
            Ok(Ok(length)) if length > 0 => {
                if stream.write_all(http::reply(&bytes[..length])).await.is_err() {
                    return;
                }
            }
            Ok(Ok(_)) => {
                let _ = stream.shutdown().await;
                return;
            }
            _ => return,
        }
    }
}

/// Gives back every datagram until told to stop.
async fn echo_datagrams(socket: UdpSocket, mut stopped: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            readable = socket.readable() => {
                if readable.is_ok() {
                    echo_waiting(&socket);
                }
            }
        }
    }
}

/// Gives back the datagrams that wait, up to a number that lets others have their turn.
fn echo_waiting(socket: &UdpSocket) {
    thread_local! {
        /// One for all sockets: nothing in it outlives the call.
        static BYTES: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM]);
    }
    BYTES.with_borrow_mut(|bytes| {
        for _ in 0..64 {
            let Ok((length, from)) = socket.try_recv_from(bytes) else {
                return;
            };
            // Refused ones are lost, as datagrams may be.
            let _ = socket.try_send_to(&bytes[..length], from);
        }
    });
}

/// Allows this process as many files as it may have at most: a socket is one.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes, and setrlimit reads, the one rlimit, which outlives the calls.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    if let Err(errno) = Errno::result(raised) {
        tracing::warn!(
            "cannot raise the limit of open files: {errno}; a large cluster may not be listened in"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's stand-in: a shell that says what `script` says.
    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn spec(directory: &Path) -> Spec {
        let control = directory.join("listen.sock");
        Spec { control, most_connections: 4, listeners: Vec::new(), watch: None }
    }

    #[test]
    fn a_server_is_noted_before_it_is_told_what_to_do() {
        let directory = tempfile::tempdir().expect("there is room");
        let told = directory.path().join("told");
        let script = format!(
            r#"read line; echo "$line" > {}; echo '{{"open":0,"unsupported":[],"failed":[]}}'"#,
            told.display()
        );
        let note = |_| {
            assert!(!told.exists());
            Ok(())
        };
        let (_, answer) = Client::start(shell(&script), &spec(directory.path()), note).expect("it answers");
        assert_eq!(answer, Answer::default());
        assert!(std::fs::read_to_string(&told).expect("it was told").contains("most_connections"));
    }

    #[test]
    fn a_server_that_cannot_be_noted_is_told_nothing_and_ends() {
        let directory = tempfile::tempdir().expect("there is room");
        let mut number = 0;
        let note = |pid| {
            number = pid;
            Err(state::Error::Busy { cluster: "lab".to_owned() })
        };
        let started = Client::start(shell("read line; sleep 100"), &spec(directory.path()), note);
        assert!(matches!(started, Err(Error::Control(control::Error::State(_)))));
        assert!(state::Process::running("sh", number).is_err(), "it still runs");
    }

    #[test]
    fn a_server_that_ends_at_once_is_an_error_and_not_a_wait() {
        let directory = tempfile::tempdir().expect("there is room");
        let started = Client::start(shell("exit 1"), &spec(directory.path()), |_| Ok(()));
        assert!(matches!(started, Err(Error::Control(control::Error::Start { .. }))), "{started:?}");
    }

    #[test]
    fn requests_are_lines_that_a_person_can_write() {
        let line =
            r#"{"add":[{"netns":"podpath-lab-world","address":"203.0.113.7","protocol":"TCP","port":80}]}"#;
        let request: Request = serde_json::from_str(line).expect("it is one");
        assert_eq!(serde_json::to_string(&request).expect("it can be written"), line);
        assert!(serde_json::from_str::<Request>(r#""stop""#).is_ok());
    }
}
