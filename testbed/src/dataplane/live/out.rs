//! Frames on their way out of a path, until they are sent.

use std::ops::Range;

use super::Wire;

/// What a path sends, in order: frames one behind the other, and the links they leave by. Its memory is used again,
/// so that a frame costs one copy and no allocation.
#[derive(Debug, Default)]
pub struct Out {
    bytes: Vec<u8>,
    frames: Vec<(Wire, Range<usize>)>,
}

impl Out {
    /// Sends a frame over a link.
    #[inline]
    pub fn send(&mut self, to: Wire, frame: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.frames.push((to, start..self.bytes.len()));
    }

    /// How many frames there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Every frame, in the order in which they were sent.
    pub fn frames(&self) -> impl Iterator<Item = (Wire, &[u8])> {
        self.frames.iter().map(|(to, range)| (*to, &self.bytes[range.clone()]))
    }

    /// Has none any more.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_and_only_once() {
        let mut out = Out::default();
        out.send(Wire::Uplink, b"one");
        out.send(Wire::Host, b"");
        out.send(Wire::Uplink, b"three");
        let frames: Vec<_> = out.frames().collect();
        assert_eq!(frames, [(Wire::Uplink, &b"one"[..]), (Wire::Host, b""), (Wire::Uplink, b"three")]);
        out.clear();
        assert!(out.is_empty() && out.frames().next().is_none());
    }
}
