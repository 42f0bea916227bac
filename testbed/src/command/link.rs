//! Makes a link of a cluster that is up worse or better.

use testbed::fabric;
use userspace::model::{LinkQuality, amount};

use super::{Answer, live};

/// Frames that wait for their turn, unless --queue says otherwise.
const QUEUE: u32 = 1000;

/// Make a link of a cluster that is up slow, lossy or narrow, in both directions; `podpath get fabric` shows
/// what comes of it
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("quality").required(true).multiple(true)))]
pub(crate) struct Args {
    /// node:name, or ext:name
    #[arg(value_name = "LINK")]
    link: String,
    /// None of the below: frames pass at once, and all of them
    #[arg(long, group = "quality", conflicts_with_all = ["delay", "loss", "duplicate", "rate"])]
    perfect: bool,
    /// Added to each frame's way, like 10ms
    #[arg(long, group = "quality", value_name = "DURATION", value_parser = amount::duration)]
    delay: Option<u64>,
    /// At most so much more or less delay, evenly
    #[arg(long, requires = "delay", value_name = "DURATION", value_parser = amount::duration)]
    jitter: Option<u64>,
    /// Frames that are lost, like 1%
    #[arg(long, group = "quality", value_name = "PERCENTAGE", value_parser = amount::percentage)]
    loss: Option<u32>,
    /// Frames that arrive twice
    #[arg(long, group = "quality", value_name = "PERCENTAGE", value_parser = amount::percentage)]
    duplicate: Option<u32>,
    /// Frames that overtake: they are not delayed
    #[arg(long, requires = "delay", value_name = "PERCENTAGE", value_parser = amount::percentage)]
    reorder: Option<u32>,
    /// Bits per second, like 100mbit
    #[arg(long, group = "quality", value_name = "RATE", value_parser = amount::rate)]
    rate: Option<u64>,
    /// Frames that wait for their turn; more are lost [default: 1000]
    #[arg(long, requires = "rate", value_name = "FRAMES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue: Option<u32>,
    /// What chance starts from
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// A cluster that is up; may be left out if it is the only one
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let quality = args.quality()?;
    let cluster = live(args.cluster.as_deref())?.cluster;
    let fabric = fabric::Client::of(&cluster, "change a link of")?;
    let others = fabric.report()?.links.into_iter().map(|link| link.quality);
    let mut links: Vec<LinkQuality> = others.filter(|link| link.link != args.link).collect();
    // A perfect link is said, too, so that one that is nobody's is refused.
    links.push(quality);
    fabric.set_links(links)?;
    Ok(Answer::Yes)
}

impl Args {
    /// All of it: what is not said is perfect.
    fn quality(&self) -> anyhow::Result<LinkQuality> {
        let quality = LinkQuality {
            link: self.link.clone(),
            delay_ns: self.delay.unwrap_or_default(),
            jitter_ns: self.jitter.unwrap_or_default(),
            loss_ppm: self.loss.unwrap_or_default(),
            duplicate_ppm: self.duplicate.unwrap_or_default(),
            reorder_ppm: self.reorder.unwrap_or_default(),
            rate_bps: self.rate.unwrap_or_default(),
            queue: self.queue.unwrap_or(QUEUE),
            seed: self.seed,
        };
        anyhow::ensure!(
            quality.jitter_ns <= quality.delay_ns,
            "cannot change link {}: --jitter is more than --delay, and no frame arrives before it was sent",
            self.link
        );
        Ok(quality)
    }
}
