// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Frames on a stream, as QEMU's stream sockets and passt have them: the length in four octets,
//! big-endian, then the frame.
//!
//! Both directions work on a buffer that is allotted once, so that many frames cross with one
//! system call and one that is cut anywhere is put together again.

use std::io;

use crate::nic::header::LONGEST_HEADER;
use crate::uplink::MAX_PACKET;

/// The largest frame: that of the largest packet.
pub(super) const MAX_FRAME: usize = MAX_PACKET - LONGEST_HEADER - 1;
/// Octets of the length before each frame.
const PREFIX: usize = 4;
/// Room for the largest frame, and for as many of the usual size.
const BUFFER: usize = 128 * 1024;

const _: () = assert!(BUFFER > PREFIX + MAX_FRAME);

/// The stream says that a frame has so many octets, which no frame can have: it is out of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadLength(pub u32);

/// Octets between `start` and `end` of a buffer.
///
/// # Invariants
/// `start <= end <= octets.len()`.
#[derive(Debug)]
struct Window {
    octets: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    fn new() -> Self {
        Window {
            octets: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    fn filled(&self) -> &[u8] {
        self.octets.get(self.start..self.end).unwrap_or_default()
    }

    fn drop_front(&mut self, octets: usize) {
        self.start = (self.start + octets).min(self.end);
        if self.start == self.end {
            self.clear();
        }
    }

    /// The free part behind what is filled, at least `want` octets of it if they are free at all.
    fn free(&mut self, want: usize) -> &mut [u8] {
        if self.octets.len() - self.end < want && self.start > 0 {
            self.octets.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.octets.get_mut(self.end..).unwrap_or_default()
    }

    fn extend(&mut self, octets: usize) {
        self.end = (self.end + octets).min(self.octets.len());
    }
}

/// Takes frames from a stream.
#[derive(Debug)]
pub(super) struct FrameReader(Window);

impl FrameReader {
    pub fn new() -> Self {
        FrameReader(Window::new())
    }

    /// Forgets what was read.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The next frame, once it is there as a whole.
    pub fn next(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let Some((prefix, rest)) = self.0.filled().split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let claimed = u32::from_be_bytes(*prefix);
        let len = match usize::try_from(claimed) {
            Ok(len) if len <= MAX_FRAME => len,
            _ => return Err(BadLength(claimed)),
        };
        if rest.len() < len {
            return Ok(None);
        }
        let at = self.0.start + PREFIX;
        self.0.drop_front(PREFIX + len);
        Ok(self.0.octets.get(at..at + len))
    }

    /// Reads once, as much as there is room for; says how much came. Call it when `next` has
    /// nothing.
    pub fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let len = read(self.0.free(BUFFER / 2))?;
        self.0.extend(len);
        Ok(len)
    }
}

/// Puts frames on a stream.
#[derive(Debug)]
pub(super) struct FrameWriter(Window);

impl FrameWriter {
    pub fn new() -> Self {
        FrameWriter(Window::new())
    }

    /// Forgets what was not written yet.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Octets that wait.
    pub fn waiting(&self) -> usize {
        self.0.filled().len()
    }

    /// Appends a frame of `len` octets that `copy` writes; says whether there was room. `copy`
    /// may come out short, then nothing is appended.
    pub fn push(
        &mut self,
        len: usize,
        copy: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), PushError> {
        let claimed = u32::try_from(len).map_err(|_| PushError::Full)?;
        let whole = len.saturating_add(PREFIX);
        let Some(room) = self.0.free(whole).get_mut(..whole) else {
            return Err(PushError::Full);
        };
        let Some((prefix, frame)) = room.split_first_chunk_mut::<PREFIX>() else {
            return Err(PushError::Full);
        };
        *prefix = claimed.to_be_bytes();
        if copy(frame) < len {
            return Err(PushError::Short);
        }
        self.0.extend(whole);
        Ok(())
    }

    /// Writes until nothing waits or `write` fails.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while self.waiting() > 0 {
            match write(self.0.filled())? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.0.drop_front(written),
            }
        }
        Ok(())
    }
}

/// Why a frame was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushError {
    /// There is no room before the next flush.
    Full,
    /// Less was copied than was said.
    Short,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(writer: &mut FrameWriter, frame: &[u8]) -> Result<(), PushError> {
        writer.push(frame.len(), |room| {
            room.copy_from_slice(frame);
            frame.len()
        })
    }

    fn feed(reader: &mut FrameReader, mut octets: &[u8]) -> usize {
        reader
            .fill(|room| io::Read::read(&mut octets, room))
            .unwrap()
    }

    #[test]
    fn lengths_are_big_endian() {
        let mut writer = FrameWriter::new();
        push(&mut writer, &[7; 258]).unwrap();
        let mut written: Vec<u8> = Vec::new();
        writer
            .flush(|octets| {
                written.extend(octets);
                Ok(octets.len())
            })
            .unwrap();
        assert_eq!(written[..5], [0, 0, 1, 2, 7]);
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_and_the_largest_is_not() {
        let mut reader = FrameReader::new();
        let largest = u32::try_from(MAX_FRAME).unwrap();
        feed(&mut reader, &(largest + 1).to_be_bytes());
        assert_eq!(reader.next(), Err(BadLength(largest + 1)));
        assert_eq!(reader.next(), Err(BadLength(largest + 1)));
        reader.clear();
        feed(&mut reader, &largest.to_be_bytes());
        assert_eq!(reader.next(), Ok(None));
        let frame = vec![9; MAX_FRAME];
        assert_eq!(feed(&mut reader, &frame), MAX_FRAME);
        assert_eq!(reader.next(), Ok(Some(&frame[..])));
        assert_eq!(reader.next(), Ok(None));
    }

    #[test]
    fn a_full_buffer_says_so_and_a_short_copy_leaves_no_trace() {
        let mut writer = FrameWriter::new();
        assert_eq!(writer.push(10, |_| 9), Err(PushError::Short));
        assert_eq!(writer.waiting(), 0);
        let frame = vec![1; MAX_FRAME];
        push(&mut writer, &frame).unwrap();
        assert_eq!(push(&mut writer, &frame), Err(PushError::Full));
        assert_eq!(writer.waiting(), PREFIX + MAX_FRAME);
        // Once some has been written, room is made by moving the rest.
        let mut once = [Ok(40_000), Err(io::ErrorKind::WouldBlock.into())].into_iter();
        assert!(writer.flush(|_| once.next().unwrap()).is_err());
        push(&mut writer, &frame).unwrap();
    }

    proptest! {
        /// Whatever pieces the stream comes in, the same frames come out.
        #[test]
        fn frames_survive_any_split(
            lens in proptest::collection::vec(
                prop_oneof![8 => 0usize..2000, 1 => 60_000usize..=MAX_FRAME], 0..40),
            writes in proptest::collection::vec(1usize..70_000, 1..20),
            reads in proptest::collection::vec(1usize..70_000, 1..20),
        ) {
            let mut writer = FrameWriter::new();
            let mut reader = FrameReader::new();
            let (mut writes, mut reads) = (writes.iter().cycle(), reads.iter().cycle());
            let mut got = Vec::new();
            let mut stream: Vec<u8> = Vec::new();
            let mut carry = |writer: &mut FrameWriter| {
                let mut calls = 0;
                let _ = writer.flush(|octets| {
                    calls += 1;
                    if calls > 2 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    let n = octets.len().min(*writes.next().unwrap());
                    stream.extend(&octets[..n]);
                    Ok(n)
                });
                while !stream.is_empty() {
                    let n = stream.len().min(*reads.next().unwrap());
                    let taken = feed(&mut reader, &stream[..n]);
                    assert!(taken > 0);
                    stream.drain(..taken);
                    while let Some(frame) = reader.next().unwrap() {
                        got.push(frame.to_vec());
                    }
                }
            };
            let frames: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(i, &len)| vec![i as u8; len]).collect();
            for frame in &frames {
                while push(&mut writer, frame) == Err(PushError::Full) {
                    carry(&mut writer);
                }
            }
            while writer.waiting() > 0 {
                carry(&mut writer);
            }
            prop_assert_eq!(got, frames);
        }

        /// Nothing that a stream says makes the reader fail in any other way than it should.
        #[test]
        fn nonsense_does_no_harm(octets in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut reader = FrameReader::new();
            feed(&mut reader, &octets);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
