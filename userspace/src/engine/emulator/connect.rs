//! Somebody dials somebody: a whole conversation, and what became of it.

use std::net::Ipv4Addr;

use dataplane::Reason;
use dataplane::trace::Stage;
use dataplane::wire::V4;

use super::host::{Dial, Progress};
use super::network::Network;
use crate::engine::{Clock, Engine};
use crate::error::Error;
use crate::observe::walk::{Event, Step};
use crate::plan::RuleName;

/// What became of an attempt to talk to somebody, as who tried can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// There was an answer.
    Allow,
    /// There was none.
    Deny,
    /// It was refused at once: nobody listens.
    Reject,
}

/// A conversation, or the attempt at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What became of it.
    pub answer: Answer,
    /// Why the first packet that was dropped was dropped.
    pub reason: Option<Reason>,
    /// The rule that decided, or the policy that isolates the pod; `None` where no policy had a say.
    pub rule: Option<RuleName>,
    /// Everything that happened to every packet of it.
    pub walk: Vec<Step>,
}

impl<E: Engine<V4> + Clock> Network<E> {
    /// Lets a host dial an address, and hosts talk until nobody has more to say.
    ///
    /// What a host sends to its own address never leaves it.
    ///
    /// # Errors
    /// An engine failed.
    pub fn connect(&mut self, from: usize, to: Ipv4Addr, dial: Dial) -> Result<Attempt, Error> {
        self.hush(false);
        self.take_steps();
        let host = self.host_at(from);
        if host.address == to {
            let answer = if host.answers(dial) { Answer::Allow } else { Answer::Reject };
            let event = Event::Loopback { host: host.name.clone() };
            return Ok(Attempt { answer, reason: None, rule: None, walk: vec![Step { packet: 1, event }] });
        }
        let opening = self.host_mut(from).dial(to, dial);
        let (place, frame) = self.framed(from, opening)?;
        self.send(place, frame);
        self.run()?;
        let answer = match self.host_at(from).progress() {
            Progress::Answered => Answer::Allow,
            Progress::Refused => Answer::Reject,
            Progress::Waiting | Progress::Open => Answer::Deny,
        };
        let walk = self.take_steps();
        Ok(Attempt { answer, reason: first_drop(&walk), rule: self.names().decider(&walk), walk })
    }
}

fn first_drop(walk: &[Step]) -> Option<Reason> {
    walk.iter().find_map(|step| match &step.event {
        Event::Stage { record, .. } if record.stage == Stage::Drop as u8 => {
            Reason::from_number(record.detail)
        }
        _ => None,
    })
}
