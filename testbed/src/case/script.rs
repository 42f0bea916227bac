//! The text of a case: its fields, and what they mean.

use ipnet::IpNet;
use serde::Deserialize;
use std::collections::BTreeMap;
use userspace::engine::emulator::message::{Chunk, Fault};

/// A case as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    /// Files of Kubernetes objects, relative to the case; a later one's objects replace those of the same
    /// name.
    #[serde(default)]
    include: Include,
    /// More objects.
    objects: Option<String>,
    /// Rows that tables may hold, where it is not what they usually may.
    #[serde(default)]
    capacity: BTreeMap<String, u32>,
    /// Routes that the agent has not written on any node.
    #[serde(default)]
    without_routes: Vec<IpNet>,
    /// What is done, in order.
    send: Vec<Line>,
    /// The walks of it all.
    expect: String,
    /// The rows that nodes hold at the end: these and no others. Left out: any.
    rows: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
enum Include {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

/// A step as it is written. It is one of: a frame that is sent (`from`), the answer to the frame that was
/// received last (`reply: true`), a whole conversation (`connect: true`), time (`wait`), the agents' sweep
/// (`sweep: true`), other objects (`apply`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Who sends: `namespace/pod`, `node:name`, `ext:name`.
    from: Option<String>,
    /// Whom: as `from`, or `svc:namespace/name`, or an address; with `:port/protocol`.
    to: Option<String>,
    /// Over which family, `IPv4` or `IPv6`, where `to` has both; its first address if left out.
    over: Option<Over>,
    /// What: `tcp` and its flags (`tcp syn ack`), `tcp data`, `udp`, `ping`, `sctp` and its chunk (`sctp
    /// cookie-echo`; an INIT if left out); `who-has` (who has the address `to`, the gateway's if left out: ARP or neighbour discovery) and, in IPv6,
    /// `router-solicitation` and `listener-report`; for a reply also the ICMP errors `unreachable`,
    /// `too-big` and `time-exceeded`. Left out: what opens a flow to `to`, or what answers the last frame.
    #[serde(rename = "as")]
    kind: Option<String>,
    /// The source address, if it is not the sender's own: a name or an address.
    source: Option<String>,
    /// The source port, or the identifier of an echo; 40000 if left out.
    source_port: Option<u16>,
    /// The time to live; 64 if left out.
    ttl: Option<u8>,
    /// Bytes of payload.
    size: Option<usize>,
    /// Only this fragment of the packet: its first byte of payload, a plus, and how many (`1480+1480`).
    fragment: Option<String>,
    /// The packet's number, which its fragments share; 1 if left out.
    identification: Option<u16>,
    /// Numbers of IPv6 extension headers before the transport's, eight bytes of padding each.
    #[serde(default)]
    extensions: Vec<u8>,
    /// The packet stands in a tunnel's packet, which `from` sends.
    tunnel: Option<Tunnel>,
    /// The node, `node:name`, at which it comes out of the fabric as it is: what the fabric itself would make
    /// of it does not matter.
    at: Option<String>,
    /// Bytes that are replaced afterwards.
    #[serde(default)]
    set: Vec<Patch>,
    /// The frame ends after so many bytes.
    cut: Option<usize>,
    /// The whole frame, in hexadecimal digits; blanks do not count.
    raw: Option<String>,
    /// Sent so many times, from one source port after the other; only the last is told.
    repeat: Option<u16>,
    #[serde(default)]
    reply: bool,
    #[serde(default)]
    connect: bool,
    /// Seconds that pass: `61s`.
    wait: Option<String>,
    /// The agents remove what is of no more use.
    #[serde(default)]
    sweep: bool,
    /// Kubernetes objects that replace those of the same name, or are new.
    apply: Option<String>,
}

/// A family, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Over {
    IPv4,
    IPv6,
}

impl Over {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// A tunnel's outer packet.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    /// Its target: `node:name`.
    pub to: String,
    /// Its network identifier; that of a sender whom no policy tells from others if left out.
    pub vni: Option<u32>,
    /// Geneve's options, in hexadecimal digits; none if left out.
    pub options: Option<String>,
}

/// Bytes that are replaced.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// The first, from the start of the frame.
    pub offset: usize,
    /// In hexadecimal digits.
    pub bytes: String,
}

/// A case, understood.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) include: Vec<String>,
    pub(super) objects: Option<String>,
    pub(super) capacity: BTreeMap<String, u32>,
    pub(super) without_routes: Vec<IpNet>,
    pub(super) steps: Vec<Step>,
    pub(super) expect: String,
    pub(super) rows: Option<String>,
}

/// A step, understood.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Send(Box<Send>),
    Reply(Reply),
    Connect { from: String, to: String, over: Option<Over> },
    Wait { seconds: u32 },
    Sweep,
    Apply(String),
}

/// A frame that is sent.
#[derive(Clone, Debug)]
pub(super) struct Send {
    pub(super) from: String,
    pub(super) to: Option<String>,
    pub(super) over: Option<Over>,
    pub(super) kind: Option<Kind>,
    pub(super) source: Option<String>,
    pub(super) source_port: u16,
    pub(super) ttl: u8,
    pub(super) size: usize,
    pub(super) fragment: Option<Cut>,
    pub(super) extensions: Vec<u8>,
    pub(super) tunnel: Option<Tunnel>,
    pub(super) at: Option<String>,
    pub(super) set: Vec<(usize, Vec<u8>)>,
    pub(super) cut: Option<usize>,
    pub(super) raw: Option<Vec<u8>>,
    pub(super) repeat: u16,
}

/// The answer to the last frame.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) kind: Option<Kind>,
    pub(super) ttl: u8,
    pub(super) size: usize,
}

/// A fragment that is cut out of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The packet's number.
    pub(super) identification: u16,
    /// The first byte of the packet's payload that is in it.
    pub(super) offset: u16,
    /// How many are.
    pub(super) length: u16,
}

impl Cut {
    fn read(text: &str, identification: u16) -> Result<Self, String> {
        let numbers = text
            .split_once('+')
            .and_then(|(offset, length)| Some((offset.trim().parse().ok()?, length.trim().parse().ok()?)));
        let (offset, length) =
            numbers.filter(|(offset, _)| u16::is_multiple_of(*offset, 8)).ok_or_else(|| {
                format!("cannot cut {text:?}: expected a multiple of 8 and a length, as in 1480+1480")
            })?;
        Ok(Self { identification, offset, length })
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// With these flags.
    Tcp(u8),
    Udp,
    Ping,
    /// With a chunk of this type.
    Sctp(u8),
    WhoHas,
    RouterSolicitation,
    ListenerReport,
    Error(Fault),
}

impl Kind {
    fn read(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let kind = match words.next() {
            Some("tcp") => {
                return Ok(Self::Tcp(words.try_fold(0, |flags, word| flag(word).map(|flag| flags | flag))?));
            }
            Some("udp") => Self::Udp,
            Some("ping") => Self::Ping,
            Some("sctp") => Self::Sctp(words.next().map_or(Ok(Chunk::INIT), chunk)?),
            Some("who-has") => Self::WhoHas,
            Some("router-solicitation") => Self::RouterSolicitation,
            Some("listener-report") => Self::ListenerReport,
            Some("unreachable") => Self::Error(Fault::Port),
            Some("too-big") => Self::Error(Fault::TooBig(1280)),
            Some("time-exceeded") => Self::Error(Fault::TimeExceeded),
            _ => {
                return Err(format!(
                    "cannot send {text:?}: expected tcp, udp, ping, sctp, who-has, router-solicitation, \
                     listener-report, unreachable, too-big or time-exceeded"
                ));
            }
        };
        match words.next() {
            None => Ok(kind),
            Some(word) => Err(format!(
                "cannot send {text:?}: only tcp has flags, and sctp one chunk; {word:?} is left over"
            )),
        }
    }
}

fn flag(word: &str) -> Result<u8, String> {
    Ok(match word {
        "fin" => 0x01,
        "syn" => 0x02,
        "rst" => 0x04,
        "psh" => 0x08,
        "ack" => 0x10,
        "data" => 0x18,
        _ => return Err(format!("unknown TCP flag {word:?}: expected syn, ack, fin, rst, psh or data")),
    })
}

fn chunk(word: &str) -> Result<u8, String> {
    let known = Chunk::WORDS.iter().find(|(_, one)| *one == word).map(|(kind, _)| *kind);
    known.ok_or_else(|| {
        let words: Vec<_> = Chunk::WORDS.iter().map(|(_, word)| *word).collect();
        format!("unknown SCTP chunk {word:?}: expected one of {}", words.join(", "))
    })
}

impl Script {
    /// Reads a case.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text: Text = serde_saphyr::from_str(text).map_err(|why| why.to_string())?;
        let include = match text.include {
            Include::None => Vec::new(),
            Include::One(file) => vec![file],
            Include::Several(files) => files,
        };
        let steps = text
            .send
            .into_iter()
            .enumerate()
            .map(|(index, line)| line.read().map_err(|why| format!("send[{index}]: {why}")));
        Ok(Self {
            include,
            objects: text.objects,
            capacity: text.capacity,
            without_routes: text.without_routes,
            steps: steps.collect::<Result<_, _>>()?,
            expect: text.expect,
            rows: text.rows,
        })
    }
}

impl Line {
    fn read(self) -> Result<Step, String> {
        if let Some(wait) = &self.wait {
            let seconds = wait.strip_suffix('s').and_then(|number| number.parse().ok());
            let seconds =
                seconds.ok_or_else(|| format!("cannot wait {wait:?}: expected seconds, as in 61s"))?;
            return Ok(Step::Wait { seconds });
        }
        if self.sweep {
            return Ok(Step::Sweep);
        }
        if let Some(objects) = self.apply {
            return Ok(Step::Apply(objects));
        }
        let kind = self.kind.as_deref().map(Kind::read).transpose()?;
        let ttl = self.ttl.unwrap_or(64);
        let size = self.size.unwrap_or(0);
        if self.reply {
            return Ok(Step::Reply(Reply { kind, ttl, size }));
        }
        let from = self.from.ok_or("nobody sends: expected from, reply, wait, sweep or apply")?;
        if self.connect {
            let to = self.to.ok_or("nobody is connected to: expected to")?;
            return Ok(Step::Connect { from, to, over: self.over });
        }
        let identification = self.identification.unwrap_or(1);
        let fragment = self.fragment.as_deref().map(|cut| Cut::read(cut, identification));
        let patches = self.set.iter().map(|patch| Ok((patch.offset, hex(&patch.bytes)?)));
        Ok(Step::Send(Box::new(Send {
            from,
            to: self.to,
            over: self.over,
            kind,
            source: self.source,
            source_port: self.source_port.unwrap_or(40_000),
            ttl,
            size,
            fragment: fragment.transpose()?,
            extensions: self.extensions,
            tunnel: self.tunnel,
            at: self.at,
            set: patches.collect::<Result<_, String>>()?,
            cut: self.cut,
            raw: self.raw.as_deref().map(hex).transpose()?,
            repeat: self.repeat.unwrap_or(1),
        })))
    }
}

pub(super) fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|char| !char.is_whitespace())
        .map(|char| char.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("{text:?} are not hexadecimal digits"))?;
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{text:?} has an odd number of hexadecimal digits"));
    }
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The text of a case with the block of one of its fields replaced; at its end, if it has none.
pub(super) fn with_block(text: &str, field: &str, block: &str) -> String {
    let start = format!("{field}:");
    let mut lines = Vec::new();
    let (mut found, mut inside) = (false, false);
    let written = |lines: &mut Vec<String>| {
        lines.push(format!("{field}: |"));
        lines.extend(block.lines().map(|line| format!("  {line}").trim_end().to_owned()));
    };
    for line in text.lines() {
        if line.starts_with(&start) {
            (found, inside) = (true, true);
            written(&mut lines);
            continue;
        }
        inside &= line.is_empty() || line.starts_with(' ');
        if !inside {
            lines.push(line.to_owned());
        }
    }
    if !found {
        written(&mut lines);
    }
    lines.join("\n") + "\n"
}
