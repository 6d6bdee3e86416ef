//! Logits on the wire: little-endian f16.
//!
//! Both sides of a comparison pass through here, also the candidate's own logits that never leave its process:
//! otherwise two equal models would differ by the rounding of one of them.

use half::f16;

/// Rounds to f16. Finite values beyond its range become its largest value, so that only what was not finite stays so.
pub fn encode(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| round(x).to_le_bytes()).collect()
}

/// The values of an encoded row; `None` for an odd number of bytes.
pub fn decode(bytes: &[u8]) -> Option<Vec<f32>> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect())
}

/// What a value becomes on its way through the wire.
pub fn through(values: &mut [f32]) {
    for x in values {
        *x = round(*x).to_f32();
    }
}

fn round(x: f32) -> f16 {
    if x.is_finite() { f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())) } else { f16::from_f32(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_as_f16_and_only_broken_ones_are_broken() {
        let values = [0.0, -1.5, 12.345, 1e6, -1e30, f32::INFINITY, f32::NAN];
        let back = decode(&encode(&values)).unwrap();
        assert_eq!(&back[..2], &[0.0, -1.5]);
        assert!((back[2] - 12.345).abs() < 0.005);
        assert_eq!(&back[3..5], &[65504.0, -65504.0]);
        assert!(back[5].is_infinite() && back[6].is_nan());
        let mut own = values;
        through(&mut own);
        assert_eq!(&own[..6], &back[..6]);
        assert_eq!(encode(&[1.0]), [0x00, 0x3c], "little endian");
        assert!(decode(&[1, 2, 3]).is_none());
    }
}
