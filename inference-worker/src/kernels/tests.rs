//! Every path against plain arithmetic, and against the portable path, at odd shapes and at the limits of the types.

use super::{
    ActivationBits, CodeWidth, Codes, CodesProduct, Cpu, Dense, DenseProduct, Elements, Kernels, KvBits, KvFormat,
    Quantized, Rows, Sequence, Ternary, TernaryProduct,
};
use half::{bf16, f16};
use proptest::prelude::*;
use std::convert::Infallible;

/// Every path that this CPU runs, on one thread and on three.
fn every_path() -> Vec<Cpu> {
    Kernels::all().into_iter().flat_map(|kernels| [1, 3].map(|threads| Cpu::new(kernels, threads).unwrap())).collect()
}

fn ternary(rows: usize, columns: usize, weight: impl Fn(usize, usize) -> i8) -> Ternary {
    let codes = |row: usize, codes: &mut [u8]| {
        codes.iter_mut().enumerate().for_each(|(column, code)| *code = (weight(row, column) + 1) as u8);
        Ok::<(), Infallible>(())
    };
    Ternary::from_codes(rows, columns, codes, |row, column| panic!("row {row}, column {column}")).unwrap()
}

/// The products in i64, from the definition.
fn expected(weight: &dyn Fn(usize, usize) -> i8, rows: usize, columns: usize, values: &[i8]) -> Vec<i64> {
    let product = |row: usize, values: &[i8]| {
        values.iter().enumerate().map(|(column, value)| i64::from(weight(row, column)) * i64::from(*value)).sum()
    };
    values
        .chunks_exact(columns)
        .flat_map(|values| (0..rows).map(|row| product(row, values)).collect::<Vec<_>>())
        .collect()
}

fn check_ternary(rows: usize, columns: usize, weight: &dyn Fn(usize, usize) -> i8, values: &[i8]) {
    let weights = ternary(rows, columns, weight);
    let x = Quantized::from_values(columns, values, &vec![1.0; values.len() / columns]);
    let expected = expected(weight, rows, columns, values);
    for cpu in every_path() {
        let found: Vec<i64> = cpu.integers(&x, &weights).into_iter().map(i64::from).collect();
        let place = format!("{} {rows} x {columns}, {} tokens", cpu.kernels().name(), x.count());
        assert_eq!(found, expected, "{place}");
        // The same as floats, in a piece of work with another product.
        let mut outs = [Rows::new(x.count(), rows), Rows::new(x.count(), rows)];
        let [out, other] = &mut outs;
        let product = |out, factor| TernaryProduct { weights: &weights, divisor: 1.0, factor, out };
        cpu.ternary(&x, &mut [product(out, 1.0), product(other, 2.0)]);
        for (row, expected) in expected.chunks_exact(rows).enumerate() {
            for (i, expected) in expected.iter().enumerate() {
                assert_eq!(outs[0].row(row)[i], *expected as f32, "{place}");
                assert_eq!(outs[1].row(row)[i], *expected as f32 * 2.0, "{place}");
            }
        }
    }
}

fn check_codes(width: CodeWidth, rows: usize, columns: usize, codes: &[u8], values: &[i8]) {
    let mask = ((1_u16 << width.bits()) - 1) as u8;
    let code = |row: usize, column: usize| codes[(row * columns + column) % codes.len()] & mask;
    let weight = |row: usize, column: usize| match width {
        CodeWidth::Binary => 2 * i64::from(code(row, column)) - 1,
        CodeWidth::Int4 => i64::from(code(row, column)) - 8,
        CodeWidth::Int8 => i64::from(code(row, column)) - 128,
    };
    let fill = |row: usize, out: &mut [u8]| {
        out.iter_mut().enumerate().for_each(|(column, out)| *out = code(row, column));
        Ok::<f32, Infallible>(row as f32 + 0.5)
    };
    let weights = Codes::from_codes(width, rows, columns, fill).unwrap();
    for (row, column) in [(0, 0), (rows - 1, columns - 1), (rows / 2, columns / 3)] {
        assert_eq!(i64::from(weights.weight(row, column)), weight(row, column));
    }
    let x = Quantized::from_values(columns, values, &vec![2.0; values.len() / columns]);
    let product = |row: usize, values: &[i8]| -> i64 {
        values.iter().enumerate().map(|(column, value)| weight(row, column) * i64::from(*value)).sum()
    };
    let expected: Vec<i64> = values
        .chunks_exact(columns)
        .flat_map(|values| (0..rows).map(|row| product(row, values)).collect::<Vec<_>>())
        .collect();
    for cpu in every_path() {
        let place = format!("{} {width:?} {rows} x {columns}, {} tokens", cpu.kernels().name(), x.count());
        let found: Vec<i64> = cpu.code_integers(&x, &weights).into_iter().map(i64::from).collect();
        assert_eq!(found, expected, "{place}");
        let mut out = Rows::new(x.count(), rows);
        cpu.codes(&x, &mut [CodesProduct { weights: &weights, out: &mut out }]);
        for (token, expected) in expected.chunks_exact(rows).enumerate() {
            for (row, expected) in expected.iter().enumerate() {
                assert_eq!(out.row(token)[row], *expected as f32 / 2.0 * (row as f32 + 0.5), "{place}");
            }
        }
    }
}

#[test]
fn products_of_codes_at_the_limits_are_exact() {
    for width in [CodeWidth::Binary, CodeWidth::Int4, CodeWidth::Int8] {
        for value in [127, -128] {
            for code in [0, 255] {
                check_codes(width, 33, 6912, &[code], &vec![value; 6912 * 5]);
            }
        }
    }
}

#[test]
fn ternary_products_at_the_limits_are_exact() {
    // Shapes and values at which 16-bit accumulators wrap.
    for columns in [2560, 4096, 6912] {
        for value in [127, -128, -127] {
            for weight in [1, -1] {
                for tokens in [1, 5, 14] {
                    check_ternary(37, columns, &|_, _| weight, &vec![value; columns * tokens]);
                }
            }
        }
    }
}

#[test]
fn a_code_above_two_is_refused_with_its_place() {
    let write = |row: usize, codes: &mut [u8]| {
        codes.fill(1);
        codes[4] = if row == 2 { 3 } else { 2 };
        Ok(())
    };
    assert_eq!(Ternary::from_codes(3, 7, write, |row, column| (row, column)), Err((2, 4)));
}

#[test]
fn packing_keeps_every_weight() {
    let weight = |row: usize, column: usize| ((row * 7 + column * 5 + column / 32) % 3) as i8 - 1;
    let weights = ternary(3, 300, weight);
    for row in 0..3 {
        for column in 0..300 {
            assert_eq!(weights.weight(row, column), weight(row, column), "{row} {column}");
        }
    }
}

/// Values that hit saturation, rounding boundaries and cancellation more often than uniform ones.
fn activation() -> impl Strategy<Value = i8> {
    prop_oneof![Just(127), Just(-128), Just(-127), Just(0), Just(1), 110..=126_i8, any::<i8>()]
}

fn number() -> impl Strategy<Value = f32> {
    // Multiples of a half land on rounding boundaries once the largest magnitude is 127.
    prop_oneof![
        4 => (-254_i16..=254).prop_map(|n| f32::from(n) / 2.0),
        4 => -100.0_f32..100.0,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => Just(f32::MIN_POSITIVE / 2.0),
        1 => Just(1e30),
    ]
}

fn rows_of(width: usize, values: &[f32]) -> Rows {
    let mut rows = Rows::new(values.len() / width, width);
    values.chunks_exact(width).enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(row));
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ternary_products_are_exact_for_all_shapes(
        (rows, columns, tokens) in (1_usize..70, 1_usize..300, 1_usize..15),
        weights in proptest::collection::vec(-1_i8..=1, 69 * 299),
        values in proptest::collection::vec(activation(), 14 * 299),
    ) {
        check_ternary(rows, columns, &|row, column| weights[row * columns + column], &values[..columns * tokens]);
    }

    #[test]
    fn products_of_codes_are_exact_for_all_widths_and_shapes(
        width in prop_oneof![Just(CodeWidth::Binary), Just(CodeWidth::Int4), Just(CodeWidth::Int8)],
        (rows, columns, tokens) in (1_usize..70, 1_usize..300, 1_usize..15),
        codes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(255), any::<u8>()], 69 * 299),
        values in proptest::collection::vec(activation(), 14 * 299),
    ) {
        check_codes(width, rows, columns, &codes, &values[..columns * tokens]);
    }

    #[test]
    fn four_bit_activations_are_the_written_rule_on_every_path(
        width in 1_usize..300,
        values in proptest::collection::vec(number(), 300),
    ) {
        let values = &values[..width];
        let mean = values.iter().map(|x| f64::from(x.abs())).sum::<f64>() / width as f64;
        let mut first: Option<(f32, Vec<i8>)> = None;
        for cpu in every_path() {
            let mut out = Quantized::default();
            cpu.fill_and_quantise(&mut rows_of(width, values), &mut out, ActivationBits::Four, &|_, _| ());
            let scale = f64::from(out.scale(0));
            prop_assert!((scale * (mean + 1e-5) / 7.0_f64.sqrt() - 1.0).abs() < 1e-4);
            for (x, q) in values.iter().zip(out.row(0)) {
                prop_assert_eq!(*q, (x * out.scale(0)).round_ties_even().clamp(-8.0, 7.0) as i8);
            }
            prop_assert_eq!(out.sum(0), out.row(0).iter().map(|v| i32::from(*v)).sum::<i32>());
            let found = (out.scale(0), out.row(0).to_vec());
            prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found);
        }
    }

    #[test]
    fn quantisation_is_the_written_rule_on_every_path(
        width in 1_usize..300,
        values in proptest::collection::vec(number(), 600),
        boundary in any::<bool>(),
    ) {
        let mut values = values[..width * 2].to_vec();
        if boundary {
            values[0] = 127.0;
            for value in &mut values {
                *value = value.clamp(-127.0, 127.0);
            }
        }
        let x = rows_of(width, &values);
        for cpu in every_path() {
            let mut out = Quantized::default();
            cpu.quantise(&mut x.clone(), &mut out);
            for (token, row) in values.chunks_exact(width).enumerate() {
                let scale = 127.0 / row.iter().fold(0.0_f32, |m, v| m.max(v.abs())).max(1e-5);
                prop_assert_eq!(out.scale(token), scale);
                let expected: Vec<i8> =
                    row.iter().map(|v| (v * scale).round_ties_even().clamp(-128.0, 127.0) as i8).collect();
                prop_assert_eq!(out.row(token), &expected[..], "{}", cpu.kernels().name());
                let (padded, stride) = out.padded();
                prop_assert_eq!(out.sum(token), expected.iter().map(|v| i32::from(*v)).sum::<i32>());
                prop_assert!(padded[token * stride + width..(token + 1) * stride].iter().all(|v| *v == 0));
            }
        }
    }

    #[test]
    fn float_products_are_close_on_every_path_and_do_not_depend_on_the_batch(
        (rows, columns, tokens) in (1_usize..70, prop_oneof![1_usize..70, 380_usize..420], 1_usize..15),
        weights in proptest::collection::vec(-2.0_f32..2.0, 70 * 420),
        values in proptest::collection::vec(-2.0_f32..2.0, 15 * 420),
    ) {
        let weights = &weights[..rows * columns];
        let stored = [
            Elements::F32(weights.to_vec()),
            Elements::F16(weights.iter().map(|w| f16::from_f32(*w)).collect()),
            Elements::Bf16(weights.iter().map(|w| bf16::from_f32(*w)).collect()),
        ];
        let x = rows_of(columns, &values[..tokens * columns]);
        for elements in &stored {
            let matrix = Dense::new(rows, columns, elements);
            let mut line = vec![0.0; columns];
            for cpu in every_path() {
                let mut out = Rows::new(tokens, rows);
                cpu.dense(&x, &mut [DenseProduct { weights: &matrix, out: &mut out }]);
                for token in 0..tokens {
                    let mut single = Rows::new(1, rows);
                    let alone = rows_of(columns, x.row(token));
                    cpu.dense(&alone, &mut [DenseProduct { weights: &matrix, out: &mut single }]);
                    prop_assert_eq!(single.row(0), out.row(token), "{}", cpu.kernels().name());
                    for row in 0..rows {
                        matrix.read_row(row, &mut line);
                        let terms = line.iter().zip(x.row(token)).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                        let found = f64::from(out.row(token)[row]);
                        prop_assert!((found - sum).abs() <= 2e-6 * size + 1e-30, "{found} {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn attention_averages_the_values_on_every_path_whatever_else_is_computed(
        (width, group, heads) in (1_usize..70, 1_usize..6, 1_usize..3),
        (before, tokens) in (0_usize..70, 1_usize..24),
        bits in prop_oneof![
            2 => Just(KvBits::ThirtyTwo),
            2 => Just(KvBits::Sixteen),
            1 => Just(KvBits::Eight),
            1 => Just(KvBits::Four),
            1 => Just(KvBits::Three),
        ],
        numbers in proptest::collection::vec(-3.0_f32..3.0, 4096),
    ) {
        let positions = before + tokens;
        let number = |at: usize| numbers[at * 31 % numbers.len()];
        let row = |position: usize, head: usize, which: usize| -> Vec<f32> {
            let number = |i| number(((position * 2 + heads) * 3 + head) * 71 + which * 977 + i);
            let mut row: Vec<f32> = (0..width).map(number).collect();
            bits.seen(&mut row);
            row
        };
        // Below 32 bits queries and weights are rounded to 16 bits as well.
        let error = if bits == KvBits::ThirtyTwo { 2e-5 } else { 5e-3 };
        let mut query = Rows::new(tokens, heads * group * width);
        for token in 0..tokens {
            query.row_mut(token).iter_mut().enumerate().for_each(|(i, x)| *x = number(token * 53 + i * 3));
        }
        let format = KvFormat { bits, head_dim: width };
        let head_bytes = KvFormat::blocks(positions) * format.block_bytes();
        // What nobody wrote must not matter.
        let mut stored = vec![0xff; heads * head_bytes];
        for head in 0..heads {
            for position in 0..positions {
                let to = &mut stored[head * head_bytes..][..head_bytes];
                format.write(to, position, &row(position, head, 0), &row(position, head, 1));
            }
        }
        let sequence = |first: usize, count: usize, from: usize| Sequence {
            format, heads: &stored, head_bytes, rows: (first, count), visible: before + 1 + from,
        };
        for cpu in every_path() {
            let mut out = Rows::new(tokens, query.width());
            cpu.attend(&[sequence(0, tokens, 0)], &query, 0.3, &mut out);
            // Cut in two sequences of rows: the same bits.
            let (cut, mut parts) = (tokens / 2, Rows::new(tokens, query.width()));
            let pieces = [sequence(0, cut, 0), sequence(cut, tokens - cut, cut)];
            cpu.attend(&pieces[usize::from(cut == 0)..], &query, 0.3, &mut parts);
            for token in 0..tokens {
                prop_assert_eq!(out.row(token), parts.row(token), "{}", cpu.kernels().name());
                for (i, query) in query.row(token).chunks_exact(width).enumerate() {
                    let head = i / group;
                    let visible = 0..=before + token;
                    let dot = |key: &[f32]| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
                    let scores: Vec<f64> = visible.clone().map(|p| (dot(&row(p, head, 0)) * 0.3).exp()).collect();
                    let total: f64 = scores.iter().sum();
                    for column in 0..width {
                        let terms = visible.clone().map(|p| scores[p] * f64::from(row(p, head, 1)[column]));
                        let found = f64::from(out.row(token)[i * width + column]);
                        let expected = terms.sum::<f64>() / total;
                        prop_assert!(
                            (found - expected).abs() < error,
                            "{} {bits} {found} {expected}", cpu.kernels().name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_visible() {
    for cpu in every_path() {
        let kernels = cpu.kernels();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 40];
            values[33] = bad;
            let mut out = Quantized::default();
            cpu.quantise(&mut rows_of(20, &values), &mut out);
            assert!(out.scale(0).is_finite() && out.scale(1).is_nan(), "{} {bad}", kernels.name());
            assert!(out.row(1).iter().all(|v| *v == 0));
        }
        let format = KvFormat { bits: KvBits::Sixteen, head_dim: 2 };
        let mut head = vec![0; format.block_bytes()];
        format.write(&mut head, 0, &[0.0, 1.0], &[1.0, 1.0]);
        format.write(&mut head, 1, &[0.0, f32::NAN], &[1.0, 1.0]);
        let mut out = Rows::new(2, 2);
        let sequence = Sequence { format, heads: &head, head_bytes: head.len(), rows: (0, 2), visible: 1 };
        cpu.attend(&[sequence], &rows_of(2, &[1.0, 2.0, 1.0, 2.0]), 1.0, &mut out);
        assert!(out.row(0).iter().all(|v| (v - 1.0).abs() < 1e-3) && out.row(1).iter().all(|v| v.is_nan()));
    }
}
