//! `podpath-agent`: one per node. See [`userspace::agent`].

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing_subscriber::EnvFilter;
use userspace::agent::{Agent, Reply, Request, Seat};

/// The longest request: a cluster of some ten thousand pods.
const LONGEST: u64 = 64 << 20;
/// Requests that wait while one is served.
const WAITING: usize = 16;
/// How often reports are taken out of the kernel.
const GLANCE: Duration = Duration::from_millis(50);

/// Keeps the packet path of one node. It reads its first request from standard input, answers it on standard
/// output, and takes all others at its socket.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The cluster
    #[arg(long)]
    cluster: String,
    /// The node
    #[arg(long)]
    node: String,
    /// The node's network namespace, as a file
    #[arg(long)]
    netns: PathBuf,
    /// Where to take requests
    #[arg(long)]
    socket: PathBuf,
    /// The node's interface to the underlay
    #[arg(long, default_value = "eth0")]
    uplink: String,
    /// Where the node's own packets to pods arrive
    #[arg(long, default_value = "podpath1")]
    host: String,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    // Before there is a second thread: all of them are in the node's namespace then.
    enter(&args.netns)?;
    let mut agent =
        Agent::new(Seat { cluster: args.cluster, node: args.node, uplink: args.uplink, host: args.host });
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the first request")?;
    if line.is_empty() {
        bail!(
            "cannot begin: standard input ended before the first request: whoever started this agent is gone"
        );
    }
    let request = serde_json::from_str(&line).context("cannot read the first request")?;
    let listener = listen(&args.socket)?;
    let reply = agent.serve(&request);
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(&reply)?).context("cannot answer the first request")?;
    output.flush().context("cannot answer the first request")?;
    drop(output);
    if let Reply::Failed(why) = reply {
        bail!(why);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(serve(agent, listener)))
}

fn enter(netns: &Path) -> anyhow::Result<()> {
    let tried = || format!("cannot enter network namespace {}", netns.display());
    let file = File::open(netns).with_context(tried)?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(tried)
}

/// An agent that was killed leaves its socket behind.
fn listen(socket: &Path) -> anyhow::Result<std::os::unix::net::UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        bail!("cannot listen at {}: another agent answers there; stop it first", socket.display());
    }
    let _ = std::fs::remove_file(socket);
    let tried = || format!("cannot listen at {}", socket.display());
    let listener = std::os::unix::net::UnixListener::bind(socket).with_context(tried)?;
    listener.set_nonblocking(true).with_context(tried)?;
    Ok(listener)
}

/// A request, and where its reply is awaited.
type Order = (Request, oneshot::Sender<Reply>);

/// One thing at a time: requests, reports, sweeps, until it is told to stop or gets a signal.
async fn serve(mut agent: Agent, listener: std::os::unix::net::UnixListener) -> anyhow::Result<()> {
    let (orders, mut received) = mpsc::channel(WAITING);
    tokio::task::spawn_local(accept(UnixListener::from_std(listener)?, orders));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut glance = tokio::time::interval(GLANCE);
    let mut swept = tokio::time::Instant::now();
    loop {
        tokio::select! {
            order = received.recv() => {
                let Some((request, answer)) = order else { return Ok(()) };
                let last = matches!(request, Request::Stop);
                // Whoever asked may have gone; what was asked is done all the same.
                let _ = answer.send(agent.serve(&request));
                if last {
                    // The answer leaves before this process does.
                    tokio::task::yield_now().await;
                    return Ok(());
                }
            }
            _ = glance.tick() => {
                agent.collect();
                if swept.elapsed() >= agent.until_sweep() {
                    let done = agent.sweep()?;
                    swept = tokio::time::Instant::now();
                    tracing::info!(done.connections, done.masquerades, done.kept, "swept");
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

async fn accept(listener: UnixListener, orders: mpsc::Sender<Order>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let orders = orders.clone();
                tokio::task::spawn_local(async move {
                    if let Err(why) = converse(stream, orders).await {
                        tracing::warn!("a conversation ended: {why:#}");
                    }
                });
            }
            Err(why) => {
                tracing::warn!("cannot take a request: {why}");
                tokio::time::sleep(GLANCE).await;
            }
        }
    }
}

/// Requests of one client, one after the other.
async fn converse(stream: UnixStream, orders: mpsc::Sender<Order>) -> anyhow::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input.take(LONGEST));
    let mut line = String::new();
    while input.read_line(&mut line).await? > 0 {
        let reply = match serde_json::from_str(&line) {
            Ok(request) => {
                let (answer, awaited) = oneshot::channel();
                orders.send((request, answer)).await.context("the agent ends")?;
                awaited.await.context("the agent ends")?
            }
            Err(why) => Reply::Failed(format!("cannot read the request: {why}")),
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        output.write_all(text.as_bytes()).await?;
        line.clear();
        input.get_mut().set_limit(LONGEST);
    }
    Ok(())
}
