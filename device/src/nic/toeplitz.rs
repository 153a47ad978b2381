// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The Toeplitz hash, by which flows are told apart (VIRTIO 1.3, 5.1.6.4.3).
//!
//! # Design
//! The hash is the exclusive or, over all bits of the input that are set, of the 32 bits of the key
//! that begin where the bit lies. It is linear, so what each half octet contributes is worked out
//! once for a key: 16 words for each of them, less than 5 KiB in all, which stays in the first
//! cache. Then a hash is two look-ups for an octet, whatever the input.

use std::fmt;

/// Octets of the longest input: two IPv6 addresses and two ports.
pub const INPUT_LEN: usize = 36;
/// Octets of the longest key of which all is used (5.1.4, `rss_max_key_size`).
pub const KEY_LEN: usize = INPUT_LEN + 4;

/// A key, made ready.
#[derive(Clone, PartialEq, Eq)]
pub struct Toeplitz {
    key: [u8; KEY_LEN],
    /// By half octet of the input, the high one first, and its value.
    tables: Box<[[u32; 16]; 2 * INPUT_LEN]>,
}

impl fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Toeplitz").field(&self.key).finish()
    }
}

impl Toeplitz {
    /// Makes a key ready. One that is shorter than [`KEY_LEN`] counts as if zeros followed; what is
    /// behind that has no use.
    pub fn new(key: &[u8]) -> Self {
        let mut whole = [0; KEY_LEN];
        for (to, from) in whole.iter_mut().zip(key) {
            *to = *from;
        }
        let mut tables = Box::new([[0; 16]; 2 * INPUT_LEN]);
        // An octet of the input sees the octet of the key at its place and the four behind it.
        for (halves, seen) in tables
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(whole.windows(5))
        {
            let seen = seen
                .iter()
                .fold(0, |sum, octet| sum << 8 | u64::from(*octet));
            for (half, table) in (0..).zip(halves) {
                for (value, entry) in (0u64..).zip(table) {
                    for bit in (0..4).filter(|bit| value & (8 >> bit) != 0) {
                        // The first 32 bits of what is left: cut on purpose.
                        *entry ^= (seen >> (8 - 4 * half - bit)) as u32;
                    }
                }
            }
        }
        Toeplitz { key: whole, tables }
    }

    /// The hash of `input`, of which [`INPUT_LEN`] octets count.
    pub fn hash(&self, input: &[u8]) -> u32 {
        let tables = self.tables.as_chunks::<2>().0;
        input
            .iter()
            .zip(tables)
            .fold(0, |hash, (octet, [high, low])| {
                // Four bits each: never out of the table.
                hash ^ high[usize::from(octet >> 4)] ^ low[usize::from(octet & 15)]
            })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The key of the examples that Microsoft gives with its specification of RSS.
    pub const EXAMPLE_KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// The definition, bit by bit.
    fn slow(key: &[u8], input: &[u8]) -> u32 {
        let bit = |octets: &[u8], at: usize| {
            octets
                .get(at / 8)
                .is_some_and(|octet| octet >> (7 - at % 8) & 1 == 1)
        };
        let window = |at| (at..at + 32).fold(0, |sum, at| sum << 1 | u32::from(bit(key, at)));
        (0..8 * input.len())
            .filter(|at| bit(input, *at))
            .fold(0, |hash, at| hash ^ window(at))
    }

    #[test]
    fn nothing_set_is_zero_and_the_first_bit_is_the_keys_start() {
        let toeplitz = Toeplitz::new(&EXAMPLE_KEY);
        assert_eq!(toeplitz.hash(&[]), 0);
        assert_eq!(toeplitz.hash(&[0; INPUT_LEN]), 0);
        assert_eq!(toeplitz.hash(&[0x80]), 0x6d5a_56da);
        // The last bit of the input sees the last but one of the key, and no further.
        let mut last = [0; INPUT_LEN];
        last[INPUT_LEN - 1] = 1;
        assert_eq!(toeplitz.hash(&last), slow(&EXAMPLE_KEY, &last));
    }

    #[test]
    fn another_key_is_another_hash() {
        let mut key = EXAMPLE_KEY;
        key[3] ^= 1;
        assert_ne!(Toeplitz::new(&key), Toeplitz::new(&EXAMPLE_KEY));
        assert_ne!(
            Toeplitz::new(&key).hash(&[0xff]),
            Toeplitz::new(&EXAMPLE_KEY).hash(&[0xff])
        );
    }

    proptest! {
        #[test]
        fn the_tables_are_the_definition(
            key in prop::collection::vec(any::<u8>(), 0..50),
            input in prop::collection::vec(any::<u8>(), 0..=INPUT_LEN),
        ) {
            let counts = &key[..key.len().min(KEY_LEN)];
            prop_assert_eq!(Toeplitz::new(&key).hash(&input), slow(counts, &input));
        }

        #[test]
        fn what_is_too_long_is_not_looked_at(input in prop::collection::vec(any::<u8>(), 36..60)) {
            let toeplitz = Toeplitz::new(&EXAMPLE_KEY);
            prop_assert_eq!(toeplitz.hash(&input), toeplitz.hash(&input[..INPUT_LEN]));
        }

        #[test]
        fn it_is_linear(a: [u8; INPUT_LEN], b: [u8; INPUT_LEN]) {
            let toeplitz = Toeplitz::new(&EXAMPLE_KEY);
            let both: Vec<u8> = a.iter().zip(b).map(|(a, b)| a ^ b).collect();
            prop_assert_eq!(toeplitz.hash(&both), toeplitz.hash(&a) ^ toeplitz.hash(&b));
        }
    }
}
