//! Goal: nothing altered, replayed or forged is ever opened, nothing authentic is refused inside the
//! window, and keys move exactly with the sender. Method: both ends driven against each other under
//! loss, reordering and an attacker who flips bits; the window against a set of all numbers seen.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::wire::PathId;
use crate::wire::v2::{Class, Flags, FrameType};

fn secrets(role: Role) -> PathSecrets {
    derive(&[0x11; 32], PathId(3), &[0x22; 16], &[0x33; 16], role)
}

fn pair(suite: Suite) -> (Sealer, Opener) {
    (Sealer::new(secrets(Role::Initiator).tx, suite), Opener::new(secrets(Role::Responder).rx, suite))
}

fn short_epochs(packets: u64) -> (Sealer, Opener) {
    let suite = Suite::Aes128Gcm;
    (
        Sealer::with_epoch_packets(secrets(Role::Initiator).tx, suite, packets),
        Opener::new(secrets(Role::Responder).rx, suite),
    )
}

fn plain(path_seq: u64, body: &[u8]) -> Vec<u8> {
    let clear = Clear {
        key_phase: false,
        frame: FrameType::Data,
        flags: Flags::DUPLICATE,
        class: Class::Video,
        receiver: 0xdead_beef,
        path_seq_low: path_seq as u32,
    };
    let mut header = [0; CLEAR_LEN];
    clear.encode(&mut header);
    [&header[..], body, &[0; TAG_LEN]].concat()
}

fn sealed(sealer: &mut Sealer, path_seq: u64) -> Vec<u8> {
    let mut datagram = plain(path_seq, &path_seq.to_be_bytes());
    sealer.seal(path_seq, &mut datagram);
    datagram
}

/// Opens it, whatever is in it.
fn attempt(opener: &mut Opener, datagram: &[u8]) -> Result<Opened, Refusal> {
    opener.open(datagram, &mut vec![0; datagram.len()])
}

/// Opens it and checks what came out.
fn open(opener: &mut Opener, datagram: &[u8]) -> Result<Opened, Refusal> {
    let mut plain = vec![0; datagram.len()];
    let opened = opener.open(datagram, &mut plain)?;
    assert_eq!(plain[..opened.len], opened.path_seq.to_be_bytes());
    assert_eq!(opened.clear.frame, FrameType::Data);
    assert_eq!(opened.clear.flags, Flags::DUPLICATE);
    assert_eq!(opened.clear.class, Class::Video);
    assert_eq!(opened.clear.receiver, 0xdead_beef);
    Ok(opened)
}

#[test]
fn both_ends_derive_the_same_and_directions_differ() {
    for suite in Suite::ALL {
        let mut forward = Sealer::new(secrets(Role::Initiator).tx, suite);
        let mut backward = Sealer::new(secrets(Role::Responder).tx, suite);
        let (a, b) = (sealed(&mut forward, 5), sealed(&mut backward, 5));
        assert_ne!(a, b);
        assert!(open(&mut Opener::new(secrets(Role::Responder).rx, suite), &a).is_ok());
        assert!(open(&mut Opener::new(secrets(Role::Initiator).rx, suite), &b).is_ok());
        assert_eq!(
            open(&mut Opener::new(secrets(Role::Responder).rx, suite), &b),
            Err(Refusal::NotAuthentic),
            "a datagram reflected to its sender does not open",
        );
    }
}

#[test]
fn every_input_of_the_key_schedule_matters() {
    let base = ([1; 32], PathId(1), [2; 16], [3; 16]);
    let mut others = vec![base; 5];
    others[1].0[31] ^= 1;
    others[2].1 = PathId(2);
    others[3].2[0] ^= 1;
    others[4].3[15] ^= 1;
    let mut bodies = BTreeSet::new();
    for (exporter, path, initiator, responder) in others {
        for suite in Suite::ALL {
            let tx = derive(&exporter, path, &initiator, &responder, Role::Initiator).tx;
            bodies.insert(sealed(&mut Sealer::new(tx, suite), 0));
        }
    }
    assert_eq!(bodies.len(), 10);
}

#[test]
fn every_bit_flip_and_truncation_is_refused_and_moves_nothing() {
    for suite in Suite::ALL {
        let (mut sealer, mut opener) = pair(suite);
        open(&mut opener, &sealed(&mut sealer, 0)).expect("authentic");
        let datagram = sealed(&mut sealer, 1);
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(attempt(&mut opener, &flipped).is_err(), "{suite:?} bit {bit}");
        }
        for len in 0..datagram.len() {
            assert!(attempt(&mut opener, &datagram[..len]).is_err(), "{suite:?} cut to {len}");
        }
        assert!(attempt(&mut opener, &[&datagram[..], &[0]].concat()).is_err());
        assert_eq!((opener.epoch(), opener.highest()), (0, Some(0)));
        let opened = open(&mut opener, &datagram).expect("the forgeries changed nothing");
        assert!(opened.newest);
        assert_eq!(open(&mut opener, &datagram), Err(Refusal::Replayed));
    }
}

#[test]
fn a_datagram_without_a_body_is_sealed_too() {
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    let mut datagram = plain(1, &[]);
    sealer.seal(1, &mut datagram);
    assert_eq!(opener.open(&datagram, &mut []).expect("authentic").len, 0);
    assert_eq!(attempt(&mut opener, &datagram[..CLEAR_LEN + TAG_LEN - 1]), Err(Refusal::Truncated));
    let datagram = sealed(&mut sealer, 2);
    assert_eq!(opener.open(&datagram, &mut [0; 7]), Err(Refusal::BadLength), "a byte of room is missing");
    open(&mut opener, &datagram).expect("and nothing has changed");
}

#[test]
fn the_sealer_writes_phase_and_sequence_itself() {
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    let mut datagram = plain(0, &77_u64.to_be_bytes());
    datagram[0] |= PHASE_BIT;
    sealer.seal(77, &mut datagram);
    let opened = open(&mut opener, &datagram).expect("authentic");
    assert_eq!((opened.path_seq, opened.clear.key_phase), (77, false));
}

#[test]
#[should_panic(expected = "path sequences only rise")]
fn a_path_sequence_is_never_sealed_twice() {
    let (mut sealer, _) = pair(Suite::Aes128Gcm);
    sealed(&mut sealer, 5);
    sealed(&mut sealer, 5);
}

#[test]
fn keys_move_by_count_and_old_packets_still_open() {
    let (mut sealer, mut opener) = short_epochs(10);
    let datagrams: Vec<_> = (0..40).map(|seq| sealed(&mut sealer, seq)).collect();
    assert_eq!(sealer.epoch(), 3);
    for (seq, datagram) in datagrams.iter().enumerate() {
        assert_eq!(datagram[0] & PHASE_BIT != 0, seq / 10 % 2 == 1, "phase of {seq}");
    }
    // Around each change the packets change places: 11 10 9 8 | 12 ...
    for around in [10, 20, 30] {
        for seq in [around + 1, around, around - 1, around - 2] {
            let opened = open(&mut opener, &datagrams[seq]).expect("in reach of the previous key");
            assert_eq!(opened.newest, seq == around + 1);
        }
        assert_eq!(opener.epoch(), around as u64 / 10);
    }
    // Two epochs back there is no key left, inside the replay window though it is.
    assert_eq!(open(&mut opener, &datagrams[15]), Err(Refusal::NotAuthentic));
    assert!(open(&mut opener, &datagrams[25]).is_ok());
}

#[test]
fn keys_move_by_time_but_not_without_traffic() {
    let (mut sealer, mut opener) = pair(Suite::ChaCha20Poly1305);
    sealer.ratchet();
    assert_eq!(sealer.epoch(), 0, "nothing was sealed with the first key");
    open(&mut opener, &sealed(&mut sealer, 0)).expect("authentic");
    for hour in 1..=50 {
        sealer.ratchet();
        sealer.ratchet();
        assert_eq!(sealer.epoch(), hour);
        open(&mut opener, &sealed(&mut sealer, hour)).expect("authentic");
        assert_eq!(opener.epoch(), hour);
    }
}

#[test]
fn a_forged_phase_bit_moves_no_key() {
    let (mut sealer, mut opener) = short_epochs(100);
    for seq in 0..100 {
        let datagram = sealed(&mut sealer, seq);
        let mut forged = datagram.clone();
        forged[0] ^= PHASE_BIT;
        assert_eq!(open(&mut opener, &forged), Err(Refusal::NotAuthentic));
        assert_eq!(opener.epoch(), 0);
        open(&mut opener, &datagram).expect("the forgery did no harm");
    }
    // At the change, where a flip makes the packet look as if it were of the old epoch.
    let datagram = sealed(&mut sealer, 100);
    let mut forged = datagram.clone();
    forged[0] ^= PHASE_BIT;
    assert_eq!(open(&mut opener, &forged), Err(Refusal::NotAuthentic));
    open(&mut opener, &datagram).expect("authentic");
    assert_eq!(opener.epoch(), 1);
    // The old epoch's last packets, replayed with either phase, stay replays or forgeries.
    for seq in 90..100 {
        let header = plain(seq, &seq.to_be_bytes());
        assert_eq!(attempt(&mut opener, &header), Err(Refusal::Replayed));
    }
    assert_eq!(opener.epoch(), 1);
}

#[test]
fn the_previous_key_is_erased_after_a_window_of_packets() {
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    let early = sealed(&mut sealer, 0);
    open(&mut opener, &early).expect("authentic");
    sealer.ratchet();
    for seq in 1..=ReplayWindow::WIDTH {
        open(&mut opener, &sealed(&mut sealer, seq)).expect("authentic");
        assert!(opener.previous.is_some(), "held at {seq}");
    }
    open(&mut opener, &sealed(&mut sealer, ReplayWindow::WIDTH + 1)).expect("authentic");
    assert!(opener.previous.is_none());
}

#[test]
fn lost_epochs_are_found_again() {
    for lost in 1..EPOCHS_AHEAD {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        let mut seq = 0;
        let mut send = |sealer: &mut Sealer| {
            seq += 1;
            sealed(sealer, seq)
        };
        open(&mut opener, &send(&mut sealer)).expect("authentic");
        for _ in 0..lost {
            sealer.ratchet();
            drop(send(&mut sealer));
        }
        sealer.ratchet();
        let late = send(&mut sealer);
        let first = send(&mut sealer);
        if open(&mut opener, &first).is_err() {
            // The first packet only raises the suspicion, the second is searched for.
            assert_eq!(opener.epoch(), 0);
            let opened = open(&mut opener, &send(&mut sealer)).expect("found");
            assert!(opened.newest);
        }
        assert_eq!(opener.epoch(), sealer.epoch(), "{lost} lost");
        open(&mut opener, &send(&mut sealer)).expect("in step");
        open(&mut opener, &late).expect("the found key opens reordered packets");
        sealer.ratchet();
        open(&mut opener, &send(&mut sealer)).expect("and the chain goes on");
        assert_eq!(opener.epoch(), sealer.epoch());
    }
}

#[test]
fn forgeries_can_not_buy_searches() {
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    open(&mut opener, &sealed(&mut sealer, 0)).expect("authentic");
    let mut searches = 0;
    for seq in 1..=10_000_u64 {
        let mut junk = plain(seq, &[0xab; 30]);
        junk[0] ^= (seq as u8 & 1) << 7;
        assert_eq!(attempt(&mut opener, &junk), Err(Refusal::NotAuthentic));
        searches += u32::from(opener.search.packets == 0);
    }
    assert_eq!(searches, 10_000_u32.div_ceil(SEARCH_INTERVAL + 1));
    assert_eq!((opener.epoch(), opener.highest()), (0, Some(0)));
    open(&mut opener, &sealed(&mut sealer, 1)).expect("authentic");
}

#[test]
fn path_sequences_are_rebuilt_across_the_wrap() {
    let start = u64::from(u32::MAX) - 100;
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    let datagrams: Vec<_> = (start..start + 300).map(|seq| sealed(&mut sealer, seq)).collect();
    // Reordered over the wrap, seven at a time.
    for chunk in datagrams.chunks(7) {
        for datagram in chunk.iter().rev() {
            open(&mut opener, datagram).expect("authentic");
        }
    }
    assert_eq!(opener.highest(), Some(start + 299));
}

#[test]
fn the_first_sequence_may_be_any_below_two_to_the_32() {
    for start in [0, 1, 8191, 8192, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, u64::from(u32::MAX)] {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        for seq in start..start + 3 {
            assert_eq!(open(&mut opener, &sealed(&mut sealer, seq)).expect("authentic").path_seq, seq);
        }
    }
}

#[test]
fn rebuilding_takes_the_nearest_number() {
    let half = 1_u64 << 31;
    for highest in [half, half + 5, (1 << 32) - 1, 1 << 32, 5 << 32, (7 << 32) + 123_456, (9 << 32) - 1] {
        let mut window = ReplayWindow::default();
        window.accept(highest);
        for distance in [0, 1, 8191, 8192, 1_000_000, half - 1] {
            assert_eq!(window.rebuild((highest - distance) as u32), Ok(highest - distance));
            assert_eq!(window.rebuild((highest + distance) as u32), Ok(highest + distance));
        }
        assert_eq!(window.rebuild((highest + half) as u32), Ok(highest + half), "the tie goes ahead");
    }
    let mut window = ReplayWindow::default();
    window.accept(u64::MAX - 3);
    assert_eq!(window.rebuild(u32::MAX), Ok(u64::MAX));
    assert_eq!(window.rebuild(0), Err(Refusal::TooOld), "past the last number");
}

/// The window must agree with a set that remembers everything.
fn window_agrees(sequences: impl IntoIterator<Item = u64>) {
    let mut window = ReplayWindow::default();
    let mut seen = BTreeSet::new();
    for sequence in sequences {
        let expected = match seen.last() {
            Some(&highest) if highest >= sequence + ReplayWindow::WIDTH => Err(Refusal::TooOld),
            _ if seen.contains(&sequence) => Err(Refusal::Replayed),
            _ => Ok(()),
        };
        assert_eq!(window.check(sequence), expected, "{sequence}");
        if expected.is_ok() {
            let newest = seen.last().is_none_or(|&highest| sequence > highest);
            assert_eq!(window.accept(sequence), newest);
            seen.insert(sequence);
        }
        assert_eq!(window.highest(), seen.last().copied());
    }
}

#[test]
fn the_window_is_exact_at_its_edges() {
    let width = ReplayWindow::WIDTH;
    window_agrees([width, 1, 0, 1, width, width + 1, 2, 1]);
    window_agrees([0, width - 1, 1, width, 0, 1, 2 * width, width + 1, width, width - 1]);
    window_agrees([63, 64, 0, 8255, 64, 8256, 65, 127, 128, 1_000_000, 999_999, 1_000_000 - width]);
    window_agrees((0..3 * width).rev());
    window_agrees((0..3 * width).chain(0..3 * width));
}

proptest! {
    #[test]
    fn the_window_agrees_with_a_set(steps in prop::collection::vec((-9000_i64..9000, 0_u8..40), 1..400)) {
        let mut at = 50_000_i64;
        window_agrees(steps.into_iter().map(|(step, jump)| {
            at = (at + step / 4).max(0) + if jump == 0 { 20_000 } else { 0 };
            at as u64
        }));
    }

    /// Loss, reordering and duplication in front of an attacker, over many changes of keys: all that
    /// is authentic, new, in the window and at most one epoch late opens; nothing else does.
    #[test]
    fn disorder_never_loses_the_keys(
        order in prop::collection::vec((0_u64..12, any::<bool>(), 0_usize..400), 1..300),
        // Above the 27 packets that a step can be ahead of all before: no epoch is lost as a whole.
        epoch_packets in 30_u64..60,
    ) {
        let (mut sealer, mut opener) = short_epochs(epoch_packets);
        let mut sent = Vec::new();
        let mut accepted = BTreeSet::new();
        for (lost, late, bit) in order {
            for _ in 0..=lost {
                let seq = sent.len() as u64;
                sent.push(sealed(&mut sealer, seq));
            }
            let newest = sent.len() - 1;
            let index = if late { newest.saturating_sub(bit % 15) } else { newest };
            let mut forged = sent[index].clone();
            let bit = bit % (forged.len() * 8);
            forged[bit / 8] ^= 1 << (bit % 8);
            let before = opener.epoch();
            prop_assert!(attempt(&mut opener, &forged).is_err());
            prop_assert_eq!(opener.epoch(), before);
            let result = open(&mut opener, &sent[index]);
            if accepted.insert(index) {
                prop_assert!(result.is_ok(), "{} of {}: {:?}", index, newest, result);
                prop_assert_eq!(result.expect("just checked").path_seq, index as u64);
            } else {
                prop_assert_eq!(result, Err(Refusal::Replayed));
            }
        }
    }

    #[test]
    fn no_bytes_make_the_opener_panic(
        first in any::<u8>(),
        rest in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        for suite in Suite::ALL {
            let (mut sealer, mut opener) = pair(suite);
            open(&mut opener, &sealed(&mut sealer, 3)).expect("authentic");
            for first in [first, first & 0x87 | 0x20] {
                let datagram = [&[first][..], &rest].concat();
                prop_assert!(attempt(&mut opener, &datagram).is_err());
                prop_assert!(attempt(&mut opener, &datagram).is_err());
            }
        }
    }
}
