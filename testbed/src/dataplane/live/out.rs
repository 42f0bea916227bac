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
    /// Sends a frame over a link: its bytes, which may still be changed.
    #[inline]
    pub fn send(&mut self, to: Wire, frame: &[u8]) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.frames.push((to, start..self.bytes.len()));
        &mut self.bytes[start..]
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

    /// Gives `take` every frame that leaves by the same link as the first, in order; they are sent no more. That
    /// link, if there was a frame.
    pub(super) fn take_link<'a>(&'a mut self, mut take: impl FnMut(&'a [u8])) -> Option<Wire> {
        let first = self.frames.first()?.0;
        let bytes = &self.bytes;
        self.frames.retain(|(to, range)| {
            let taken = *to == first;
            if taken {
                take(&bytes[range.clone()]);
            }
            !taken
        });
        Some(first)
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

    fn three() -> Out {
        let mut out = Out::default();
        out.send(Wire::Uplink, b"one");
        out.send(Wire::Host, b"");
        out.send(Wire::Uplink, b"three")[0] = b'T';
        out
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_only_once() {
        let mut out = three();
        let frames: Vec<_> = out.frames().collect();
        assert_eq!(frames, [(Wire::Uplink, &b"one"[..]), (Wire::Host, b""), (Wire::Uplink, b"Three")]);
        out.clear();
        assert!(out.is_empty() && out.frames().next().is_none());
    }

    #[test]
    fn the_frames_of_a_link_are_taken_together_and_in_order() {
        let mut out = three();
        let mut taken = Vec::new();
        assert_eq!(out.take_link(|frame| taken.push(frame.to_vec())), Some(Wire::Uplink));
        assert_eq!(taken, [b"one".to_vec(), b"Three".to_vec()]);
        assert_eq!(out.take_link(|frame| assert!(frame.is_empty())), Some(Wire::Host));
        assert_eq!(out.take_link(|_| unreachable!("all are taken")), None);
    }
}
