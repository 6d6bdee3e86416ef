//! Little-endian bytes and base64 text for the state that outlives a reconcile, without a dependency.
//!
//! The text of a state is `base64(version u8 | parameters u64 | payload | checksum u32)`: a reader knows before the
//! payload whether it can read it, under which parameters it was written, and that it arrived whole.

/// Why a stored text was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by another version of the format.
    #[error("format {found}, expected {expected}")]
    Version {
        /// Version found.
        found: u8,
        /// Version of this build.
        expected: u8,
    },
    /// Truncated or garbled; the reason in words.
    #[error("{0}")]
    Garbled(&'static str),
}

/// FNV-1a, 64 bits: stable across builds and platforms, which `std`'s hasher does not promise.
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes more bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    /// The hash of everything taken so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// Writes a payload.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// A flag.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// Eight bytes, for values without a bias to small numbers (seeds, hashes).
    pub fn fixed_u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// An unsigned number, 7 bits per byte: counts are mostly small.
    pub fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8);
    }

    /// An unsigned number, as [`Writer::u64`].
    pub fn u32(&mut self, value: u32) {
        self.u64(u64::from(value));
    }

    /// A signed number, zigzag.
    pub fn i64(&mut self, value: i64) {
        self.u64(((value << 1) ^ (value >> 63)) as u64);
    }

    /// All 64 bits of a float.
    pub fn f64(&mut self, value: f64) {
        self.fixed_u64(value.to_bits());
    }

    /// Length and bytes of a text.
    pub fn str(&mut self, value: &str) {
        self.u64(value.len() as u64);
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// An optional value: a flag, then `write` where there is one.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// The text: version, the hash of the parameters under which it was written, payload, checksum.
    pub fn seal(self, version: u8, parameters: u64) -> String {
        let mut all = Vec::with_capacity(self.bytes.len() + 13);
        all.push(version);
        all.extend_from_slice(&parameters.to_le_bytes());
        all.extend_from_slice(&self.bytes);
        let sum = checksum(&all);
        all.extend_from_slice(&sum.to_le_bytes());
        to_base64(&all)
    }
}

/// Reads a payload. Every method refuses the end of the data; none panics or allocates more than the input's size.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Vec<u8>,
    at: usize,
    parameters: u64,
}

impl Reader {
    /// Opens a sealed text of this `version`.
    pub fn open(text: &str, version: u8) -> Result<Self, CodecError> {
        let mut bytes = from_base64(text.trim()).ok_or(CodecError::Garbled("it is not base64"))?;
        let found = *bytes.first().ok_or(CodecError::Garbled("it is empty"))?;
        if found != version {
            return Err(CodecError::Version { found, expected: version });
        }
        if bytes.len() < 13 {
            return Err(CodecError::Garbled("it is too short"));
        }
        let sum = bytes.split_off(bytes.len() - 4);
        if checksum(&bytes).to_le_bytes() != sum[..] {
            return Err(CodecError::Garbled("its checksum does not fit"));
        }
        let mut reader = Self { bytes, at: 1, parameters: 0 };
        reader.parameters = reader.fixed_u64()?;
        Ok(reader)
    }

    /// Hash of the parameters under which the text was written.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let slice =
            self.bytes.get(self.at..).and_then(|rest| rest.get(..N)).ok_or(CodecError::Garbled("it ends early"))?;
        let mut out = [0; N];
        out.copy_from_slice(slice);
        self.at += N;
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.take::<1>()?[0])
    }

    /// A flag; only 0 and 1 are flags.
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Garbled("a flag is neither 0 nor 1")),
        }
    }

    /// Eight bytes.
    pub fn fixed_u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// An unsigned number.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CodecError::Garbled("a number is too long"))
    }

    /// An unsigned number of at most 32 bits.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.u64()?).map_err(|_| CodecError::Garbled("a number is too large"))
    }

    /// A signed number.
    pub fn i64(&mut self) -> Result<i64, CodecError> {
        let raw = self.u64()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A finite float: no state holds another.
    pub fn f64(&mut self) -> Result<f64, CodecError> {
        let value = f64::from_bits(self.fixed_u64()?);
        if value.is_finite() { Ok(value) } else { Err(CodecError::Garbled("a number is not finite")) }
    }

    /// A text.
    pub fn str(&mut self) -> Result<String, CodecError> {
        let length = usize::try_from(self.u64()?).map_err(|_| CodecError::Garbled("a text is too long"))?;
        let end = self.at.checked_add(length).ok_or(CodecError::Garbled("a text is too long"))?;
        let slice = self.bytes.get(self.at..end).ok_or(CodecError::Garbled("it ends early"))?;
        let text = std::str::from_utf8(slice).map_err(|_| CodecError::Garbled("a text is not UTF-8"))?.to_owned();
        self.at = end;
        Ok(text)
    }

    /// An optional value.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// The payload must end here.
    pub fn finish(self) -> Result<(), CodecError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(CodecError::Garbled("it is too long")) }
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let hash = Fnv::default().bytes(bytes).finish();
    (hash >> 32) as u32 ^ hash as u32
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 without padding.
fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0u8; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        if chunk.len() == 1 {
            return None;
        }
        let mut bits = 0u32;
        for (i, &c) in chunk.iter().enumerate() {
            let digit = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits |= u32::from(digit) << (18 - 6 * i);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_comes_back() {
        let mut w = Writer::new();
        w.u8(7);
        w.bool(true);
        w.fixed_u64(u64::MAX);
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::MAX] {
            w.u64(n);
        }
        for n in [0, -1, 1, i64::MIN, i64::MAX] {
            w.i64(n);
        }
        w.f64(-0.1);
        w.str("ä\n");
        w.option(Some(3u32), Writer::u32);
        w.option(None::<u32>, Writer::u32);
        let text = w.seal(1, 42);
        let mut r = Reader::open(&text, 1).unwrap();
        assert_eq!(r.parameters(), 42);
        assert_eq!(r.u8(), Ok(7));
        assert_eq!(r.bool(), Ok(true));
        assert_eq!(r.fixed_u64(), Ok(u64::MAX));
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::MAX] {
            assert_eq!(r.u64(), Ok(n));
        }
        for n in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(r.i64(), Ok(n));
        }
        assert_eq!(r.f64(), Ok(-0.1));
        assert_eq!(r.str().as_deref(), Ok("ä\n"));
        assert_eq!(r.option(Reader::u32), Ok(Some(3)));
        assert_eq!(r.option(Reader::u32), Ok(None));
        assert_eq!(r.clone().finish(), Ok(()));
        assert_eq!(r.u8(), Err(CodecError::Garbled("it ends early")));
    }

    #[test]
    fn any_single_changed_or_missing_character_is_refused() {
        let mut w = Writer::new();
        w.str("evidence");
        w.f64(1.5);
        let text = w.seal(3, 9);
        assert!(Reader::open(&text, 3).is_ok());
        assert_eq!(Reader::open(&text, 4).unwrap_err(), CodecError::Version { found: 3, expected: 4 });
        for i in 0..text.len() {
            let mut cut = text.clone();
            cut.truncate(i);
            assert!(Reader::open(&cut, 3).is_err(), "cut at {i}");
            for c in ["A", "Z", "+", "=", "é"] {
                let changed = format!("{}{c}{}", &text[..i], &text[i + 1..]);
                // The last character carries unused bits: there a change may leave the bytes as they were.
                assert!(changed == text || i + 1 == text.len() || Reader::open(&changed, 3).is_err(), "{c} at {i}");
            }
        }
    }

    #[test]
    fn base64_is_the_standard_one() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("\u{fb}", "w7s")]
        {
            assert_eq!(to_base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(to_base64(&[0xff, 0xef, 0xbe]), "/+++");
    }
}
