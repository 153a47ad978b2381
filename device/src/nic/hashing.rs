// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a driver has received packets hashed for (VIRTIO 1.3, 5.1.6.4.3): to choose their queue, to be
//! told the hash, or both. Either way a packet is hashed once.

use super::flow_hash::{FlowHash, FlowHasher};
use super::rss::Rss;

/// How packets are hashed, and whether the hash chooses the queue. Whether it is reported shows in the
/// size of the header ([`super::features::Features::header_len`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashing {
    hasher: FlowHasher,
    rss: Option<Rss>,
}

impl Hashing {
    /// Hashes are made so, and perhaps choose the queue.
    pub fn new(hasher: FlowHasher, rss: Option<Rss>) -> Self {
        Hashing { hasher, rss }
    }

    /// The same hashes, for reports alone; none if there are no hashes.
    pub fn reports_alone(&self) -> Option<Self> {
        let hasher = self.hasher.is_of_use().then(|| self.hasher.clone())?;
        Some(Hashing::new(hasher, None))
    }

    /// The hash of the frame that starts so, of which [`HEADERS`](super::flow_hash::HEADERS) octets tell
    /// all.
    pub fn hash(&self, frame_start: &[u8]) -> Option<FlowHash> {
        self.hasher.hash(frame_start)
    }

    /// The number of the receive queue for a packet with this hash, or with none; without receive-side
    /// scaling that is the device's choice.
    pub fn queue(&self, hash: Option<FlowHash>) -> Option<usize> {
        self.rss.as_ref().map(|rss| rss.queue(hash))
    }

    /// Receive-side scaling, if the driver wants it.
    pub fn rss(&self) -> Option<&Rss> {
        self.rss.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::flow_hash::SUPPORTED_HASH_TYPES;
    use super::*;

    #[test]
    fn one_hash_is_for_the_queue_and_the_report() {
        let frame = [
            &[0; 12][..],
            &[8, 0, 0x45],
            &[0; 8],
            &[1, 0, 0, 9, 8, 7, 6, 1, 2, 3, 4],
        ]
        .concat();
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 46]].concat();
        let hasher = FlowHasher::new(SUPPORTED_HASH_TYPES, &[0x6d, 0x5a, 0x56, 0xda, 0x25]);
        let rss = Rss::new(Box::new([3, 4]), 5);
        let both = Hashing::new(hasher.clone(), rss.clone());
        let hash = both.hash(&frame);
        assert_eq!(hash, hasher.hash(&frame));
        let value = hash.unwrap().value;
        assert_eq!(both.queue(hash), Some(3 + value as usize % 2));
        assert_eq!(both.queue(both.hash(&arp)), Some(5));
        let report = both.reports_alone().unwrap();
        assert_eq!((report.hash(&frame), report.queue(hash)), (hash, None));
        assert_eq!(report.rss(), None);
        let nothing = Hashing::new(FlowHasher::new(0, &[1; 40]), rss);
        assert_eq!(nothing.reports_alone(), None);
        assert_eq!(nothing.queue(nothing.hash(&frame)), Some(5));
    }
}
