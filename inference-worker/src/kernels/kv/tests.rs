use super::*;
use proptest::prelude::*;

fn read(format: KvFormat, head: &[u8], position: usize) -> (Vec<f32>, Vec<f32>) {
    let (width, slot) = (format.head_dim, position % POSITIONS);
    let block = &head[position / POSITIONS * format.block_bytes()..][..format.block_bytes()];
    if format.bits == KvBits::ThirtyTwo {
        let (mut keys, mut values) = (vec![0.0; width * POSITIONS], vec![0.0; width * POSITIONS]);
        format.read(block, &mut keys, &mut values, width);
        let key = (0..width).map(|column| keys[column * POSITIONS + slot]).collect();
        return (key, values[slot * width..][..width].to_vec());
    }
    let mut numbers = Numbers::default();
    let view = numbers.read(format, block);
    let number = |scales: &Scales, at: usize, pair: [u8; 4], second: bool| {
        let [a, b, c, d] = pair;
        let whole = i16::from_le_bytes(if second { [c, d] } else { [a, b] });
        let low = scales.low.get(at).copied().unwrap_or_default();
        low + scales.step[at] * f32::from(whole)
    };
    let group = |column: usize| if format.bits.coded() { column / GROUP } else { 0 };
    let key = |column: usize| {
        number(
            view.key_scales,
            group(column) * POSITIONS + slot,
            view.keys[column / 2 * POSITIONS + slot],
            column % 2 == 1,
        )
    };
    let value = |column: usize| {
        number(
            view.value_scales,
            slot * format.groups() + group(column),
            view.values[slot / 2 * format.padded() + column],
            slot % 2 == 1,
        )
    };
    ((0..width).map(key).collect(), (0..width).map(value).collect())
}

fn all() -> impl Iterator<Item = KvBits> {
    KvBits::SERVED.into_iter().chain([KvBits::ThirtyTwo])
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written_but_for_half_a_step(
        head_dim in 1_usize..150,
        numbers in proptest::collection::vec(prop_oneof![-8.0_f32..8.0, Just(0.0), -1e-6_f32..1e-6, -9e3_f32..9e3], 40 * 300),
    ) {
        for bits in all() {
            let format = KvFormat { bits, head_dim };
            let mut head = vec![0xff; KvFormat::blocks(40) * format.block_bytes()];
            let row = |position: usize, which: usize| &numbers[(2 * position + which) * 150..][..head_dim];
            for position in 0..40 {
                format.write(&mut head, position, row(position, 0), row(position, 1));
            }
            // Training rounds as the cache does, to the bit.
            for which in 0..2 {
                let mut seen = row(7, which).to_vec();
                bits.seen(&mut seen);
                let (key, value) = read(format, &head, 7);
                prop_assert_eq!(&seen, if which == 0 { &key } else { &value });
            }
            // The last ones again: neighbours must not change.
            format.write(&mut head, 33, row(33, 0), row(33, 1));
            for position in 0..40 {
                let (key, value) = read(format, &head, position);
                for (found, expected) in [(key, row(position, 0)), (value, row(position, 1))] {
                    let whole = step(expected);
                    for (found, expected) in found.chunks(GROUP).zip(expected.chunks(GROUP)) {
                        let limit = match bits {
                            KvBits::ThirtyTwo => vec![0.0; expected.len()],
                            KvBits::Sixteen => vec![whole * 0.51; expected.len()],
                            _ => {
                                let largest = bits.largest();
                                let step = Scale::of(expected, largest).step;
                                let range = expected.iter().fold(f32::MIN, |m, x| m.max(*x)) - expected.iter().fold(f32::MAX, |m, x| m.min(*x));
                                let size = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                                // Half precision rounds the bound by at most a 2^-10th and the step likewise.
                                prop_assert!(step <= (range + size / 1024.0) / f32::from(largest) * 1.001 + 1e-7);
                                vec![step * 0.501 + size * 1e-6; expected.len()]
                            }
                        };
                        for ((found, expected), limit) in found.iter().zip(expected).zip(limit) {
                            prop_assert!((found - expected).abs() <= limit, "{bits} {found} {expected} {limit}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bytes_are_as_computed() {
    // 128 numbers, for the key and for the value: two bounds and two steps of two bytes; of 16 bits one step of four.
    let expected = [
        (KvBits::ThirtyTwo, 1024),
        (KvBits::Sixteen, 520),
        (KvBits::Eight, 272),
        (KvBits::Four, 144),
        (KvBits::Three, 112),
    ];
    for (bits, bytes) in expected {
        assert_eq!(KvFormat { bits, head_dim: 128 }.block_bytes(), bytes * POSITIONS, "{bits}");
    }
}

#[test]
fn what_is_not_finite_stays_visible() {
    for bits in all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
            let format = KvFormat { bits, head_dim: 3 };
            let mut head = vec![0; format.block_bytes()];
            format.write(&mut head, 5, &[1.0, bad, 2.0], &[bad, 0.0, 0.0]);
            let (key, value) = read(format, &head, 5);
            let shown = |x: f32| !x.is_finite() || x == bad;
            assert!(shown(key[1]) && shown(value[0]), "{bits} {bad}");
            assert!(read(format, &head, 6).0.iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn names_are_those_of_the_command_line() {
    for bits in KvBits::SERVED {
        assert_eq!(bits.to_string().parse(), Ok(bits));
    }
    assert!(["32", "2", "", "16 "].iter().all(|text| text.parse::<KvBits>().is_err()));
}

proptest! {
    #[test]
    fn products_of_rows_of_sixteen_bits_fit_in_32(
        numbers in proptest::collection::vec(prop_oneof![-1.0_f32..1.0, Just(1.0), Just(-1.0), Just(0.0)], 1..600),
        size in prop_oneof![Just(1e-14_f32), Just(1.0), Just(1e15)],
    ) {
        let numbers: Vec<f32> = numbers.iter().map(|x| x * size).collect();
        let (step, largest) = (step(&numbers), numbers.iter().fold(0.0_f32, |most, x| most.max(x.abs())));
        prop_assert!(step.is_finite() && (step > 0.0) == (largest > 0.0));
        let wholes: Vec<i64> = numbers.iter().map(|x| i64::from(whole(x * inverse(step)))).collect();
        prop_assert!(wholes.iter().all(|x| x.abs() <= 32_767));
        prop_assert!(wholes.iter().map(|x| x * x).sum::<i64>() < 1 << 31);
        let length = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let lost = length(&mut numbers.iter().zip(&wholes).map(|(x, w)| f64::from(*x) - f64::from(step) * *w as f64));
        // Half a step for each number at most.
        prop_assert!(lost <= 0.501 * f64::from(step) * (numbers.len() as f64).sqrt());
    }
}
