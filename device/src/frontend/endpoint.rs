// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One end of the relay: whole vhost-user messages over a stream socket, never blocking.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::relay::{Frame, HEADER_LEN, payload_len};

/// Most descriptors in one message; the crate has the same limit.
const MAX_FDS: usize = 32;
/// While so many messages wait to go out, the other end is not read.
const MAX_WAITING: usize = 16;

/// What reading has brought.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message.
    Frame(Frame),
    /// Nothing whole yet.
    Nothing,
    /// The peer has closed.
    Closed,
}

/// A socket with the message that is coming in and those that wait to go out.
#[derive(Debug)]
pub struct Endpoint {
    stream: UnixStream,
    partial: Frame,
    waiting: VecDeque<Frame>,
    /// Octets of the first waiting message that are gone already.
    gone: usize,
}

impl Endpoint {
    /// An end over `stream`.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Endpoint {
            stream,
            partial: Frame::default(),
            waiting: VecDeque::new(),
            gone: 0,
        })
    }

    /// Whether messages wait to go out.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether more should be brought to this end now.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// Reads on. An error when the peer sends what can be no message.
    pub fn read(&mut self) -> io::Result<Incoming> {
        loop {
            let want = match self.partial.bytes.first_chunk::<HEADER_LEN>() {
                None => HEADER_LEN,
                Some(header) => HEADER_LEN + payload_len(header).ok_or_else(too_long)?,
            };
            let have = self.partial.bytes.len();
            if have >= HEADER_LEN && have == want {
                return Ok(Incoming::Frame(std::mem::take(&mut self.partial)));
            }
            let mut buffer = vec![0; want - have];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            );
            let message = match received {
                Ok(message) => message,
                Err(rustix::io::Errno::AGAIN) => return Ok(Incoming::Nothing),
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) => return Ok(Incoming::Closed),
                Err(e) => return Err(e.into()),
            };
            for item in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = item {
                    self.partial.fds.extend(fds);
                }
            }
            if message.flags.contains(ReturnFlags::CTRUNC) || self.partial.fds.len() > MAX_FDS {
                return Err(io::Error::other("a message with too many descriptors"));
            }
            if message.bytes == 0 {
                return Ok(Incoming::Closed);
            }
            self.partial
                .bytes
                .extend_from_slice(buffer.get(..message.bytes).unwrap_or_default());
        }
    }

    /// Puts a message in line.
    pub fn push(&mut self, frame: Frame) {
        self.waiting.push_back(frame);
    }

    /// Sends as much as the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(frame) = self.waiting.front() {
            let rest = frame.bytes.get(self.gone..).unwrap_or_default();
            // Descriptors go with the first octet.
            let fds: &[OwnedFd] = if self.gone == 0 { &frame.fds } else { &[] };
            match send(&self.stream, rest, fds) {
                Ok(n) if n == rest.len() => {
                    self.gone = 0;
                    self.waiting.pop_front();
                }
                Ok(n) => self.gone += n,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn too_long() -> io::Error {
    io::Error::other("a message longer than any the protocol has")
}

/// Whether the peer has closed, be it that some of what it said is not read yet.
pub fn hung_up(stream: impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP)];
    // Errors and hang-ups are reported unasked. A call that fails says nothing either way.
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Sends octets and descriptors without blocking.
pub fn send(to: impl AsFd, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        // The space is for as many as `read` lets through.
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn message(request: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [request, 1, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    fn frame(end: &mut Endpoint) -> Frame {
        match end.read().unwrap() {
            Incoming::Frame(frame) => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut end = Endpoint::new(ours).unwrap();
        let both = [message(1, b""), message(5, b"payload")].concat();
        let mut seen = Vec::new();
        for octet in both {
            peer.write_all(&[octet]).unwrap();
            while let Incoming::Frame(frame) = end.read().unwrap() {
                seen.push(frame.bytes);
            }
        }
        assert_eq!(seen, [message(1, b""), message(5, b"payload")]);
        drop(peer);
        assert!(matches!(end.read().unwrap(), Incoming::Closed));
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Endpoint::new(a).unwrap(), Endpoint::new(b).unwrap());
        let (fd, mut other) = UnixStream::pair().unwrap();
        a.push(Frame {
            bytes: message(1, b"x"),
            fds: Vec::new(),
        });
        a.push(Frame {
            bytes: message(2, b"y"),
            fds: vec![fd.into()],
        });
        a.push(Frame {
            bytes: message(3, b"z"),
            fds: Vec::new(),
        });
        a.flush().unwrap();
        assert!(frame(&mut b).fds.is_empty());
        let with = frame(&mut b);
        assert_eq!(with.fds.len(), 1);
        assert!(frame(&mut b).fds.is_empty());
        let mut back =
            Endpoint::new(UnixStream::from(with.fds.into_iter().next().unwrap())).unwrap();
        other.write_all(&message(9, b"")).unwrap();
        assert_eq!(frame(&mut back).bytes, message(9, b""));
    }

    #[test]
    fn an_endless_message_is_refused() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut end = Endpoint::new(ours).unwrap();
        peer.write_all(&[0xff; HEADER_LEN]).unwrap();
        assert!(end.read().is_err());
    }

    #[test]
    fn a_full_socket_keeps_the_rest_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Endpoint::new(a).unwrap(), Endpoint::new(b).unwrap());
        let count = 200;
        for i in 0..count {
            a.push(Frame {
                bytes: message(i, &[i as u8; 4096]),
                fds: Vec::new(),
            });
        }
        assert!(!a.has_room());
        a.flush().unwrap();
        assert!(a.is_waiting());
        for i in 0..count {
            let got = loop {
                match b.read().unwrap() {
                    Incoming::Frame(frame) => break frame,
                    _ => a.flush().unwrap(),
                }
            };
            assert_eq!(got.bytes, message(i, &[i as u8; 4096]));
        }
        assert!(!a.is_waiting());
    }
}
