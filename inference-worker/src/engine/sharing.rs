//! Who reads a beginning that several prompts share.

/// A shorter beginning is read again: copying it would not be worth a cache of its own.
pub(super) const SHORTEST: usize = 16;

/// What a sequence that has read nothing does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It reads its prompt.
    Read,
    /// It goes on from so many tokens that another one has read.
    Copy { from: usize, len: usize },
    /// Another one is reading what it needs.
    Wait,
}

/// A sequence that others may copy from.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) sequence: usize,
    pub(super) prompt: &'a [u32],
    /// Tokens of it that are read.
    pub(super) read: usize,
    /// Nothing is read yet, and it may wait itself.
    pub(super) fresh: bool,
}

/// Decides for the prompt of sequence `own`; `kept` tokens of it are there from requests that have ended. Whoever waits,
/// waits for one that reads or for a fresh one before it in the order of sequences, so the first fresh one never waits for a
/// fresh one and nobody waits in a circle. Asked again before each pass: where a reader goes away, another one reads.
pub(super) fn start<'a>(own: usize, prompt: &[u32], kept: usize, readers: impl Iterator<Item = Reader<'a>>) -> Start {
    // At least one token is left to read, because its logits are wanted.
    let most = prompt.len().saturating_sub(1);
    let (mut now, mut later) = (None, 0);
    for reader in readers.filter(|reader| reader.sequence != own) {
        let shared = common(reader.prompt, prompt).min(most);
        let there = shared.min(reader.read);
        if there > now.map_or(kept, |(_, len)| len) {
            now = Some((reader.sequence, there));
        }
        if !reader.fresh || reader.sequence < own {
            later = later.max(shared);
        }
    }
    let len = now.map_or(kept, |(_, len)| len);
    match now {
        _ if later >= len + SHORTEST => Start::Wait,
        Some((from, len)) if len >= SHORTEST => Start::Copy { from, len },
        _ => Start::Read,
    }
}

/// Tokens with which both begin.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(len: usize, last: u32) -> Vec<u32> {
        let mut tokens = vec![7; len];
        tokens.push(last);
        tokens
    }

    #[test]
    fn what_was_read_is_copied_and_what_is_being_read_is_waited_for() {
        let (mine, other) = (prompt(40, 1), prompt(40, 2));
        let reader = |sequence, read, fresh| Reader { sequence, prompt: &other, read, fresh };
        let decide = |kept, readers: &[Reader<'_>]| start(1, &mine, kept, readers.iter().copied());
        assert_eq!(decide(0, &[]), Start::Read);
        assert_eq!(decide(0, &[reader(0, 41, false)]), Start::Copy { from: 0, len: 40 });
        assert_eq!(decide(0, &[reader(0, 20, false)]), Start::Wait);
        assert_eq!(decide(0, &[reader(0, 0, true)]), Start::Wait);
        assert_eq!(decide(0, &[reader(2, 0, true)]), Start::Read, "a fresh one after this one waits for this one");
        assert_eq!(decide(0, &[reader(2, 20, false)]), Start::Wait, "one that reads never waits");
        assert_eq!(decide(0, &[reader(0, 30, false)]), Start::Copy { from: 0, len: 30 }, "ten more are not worth it");
        assert_eq!(decide(40, &[reader(0, 41, false)]), Start::Read, "as much is kept");
        assert_eq!(decide(0, &[reader(0, 30, false), reader(3, 41, false)]), Start::Copy { from: 3, len: 40 });
    }

    #[test]
    fn short_beginnings_are_read_again_and_one_token_is_left() {
        let same = prompt(40, 1);
        let reader = Reader { sequence: 0, prompt: &same, read: 41, fresh: false };
        assert_eq!(start(1, &same, 0, [reader].into_iter()), Start::Copy { from: 0, len: 40 });
        let mine = [[7; SHORTEST - 1].as_slice(), &[8; 40]].concat();
        assert_eq!(start(1, &mine, 0, [reader].into_iter()), Start::Read);
    }
}
