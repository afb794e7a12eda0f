//! The inverse cosine transform of libjpeg and libjpeg-turbo (`jidctint.c`, "islow"), bit for bit:
//! it is what Pillow and OpenCV decode with.
//!
//! libjpeg-turbo's vector code computes with 16 bits what its C code computes with 32. Where the
//! two could differ, the coefficients are none of a picture, and an error.

/// A block's samples, row by row, from its dequantised coefficients.
pub(super) fn inverse(coefficients: &[i32; 64]) -> Option<[u8; 64]> {
    if coefficients.iter().any(|value| value.abs() > MOST_INPUT) {
        return None;
    }
    let mut halfway = [0; 64];
    for column in 0..8 {
        let line = std::array::from_fn(|row| coefficients[row * 8 + column]);
        let line = transform(line, CONSTANT_BITS - PASS_BITS);
        for (row, value) in line.into_iter().enumerate() {
            halfway[row * 8 + column] = value;
        }
    }
    if halfway.iter().any(|value| value.abs() > MOST_HALFWAY) {
        return None;
    }
    let mut samples = [0; 64];
    for (line, samples) in halfway.as_chunks::<8>().0.iter().zip(samples.as_chunks_mut::<8>().0) {
        for (value, sample) in transform(*line, CONSTANT_BITS + PASS_BITS + 3).iter().zip(samples) {
            if value.abs() > MOST_OUTPUT {
                return None;
            }
            *sample = (value + 128).clamp(0, 255) as u8;
        }
    }
    Some(samples)
}

/// Eight values, divided by 2^`shift` and rounded.
fn transform(input: [i32; 8], shift: u32) -> [i32; 8] {
    let (a, b) = (input[2], input[6]);
    let both = (a + b) * 4_433;
    let (low, high) = (both - b * 15_137, both + a * 6_270);
    let sum = (input[0] + input[4]) << CONSTANT_BITS;
    let difference = (input[0] - input[4]) << CONSTANT_BITS;
    let even = [sum + high, difference + low, difference - low, sum - high];

    let [_, d, _, c, _, b, _, a] = input;
    let shared = (a + c + b + d) * 9_633;
    let (first, second) = ((a + d) * -7_373, (b + c) * -20_995);
    let (third, fourth) = ((a + c) * -16_069 + shared, (b + d) * -3_196 + shared);
    let odd = [
        d * 12_299 + first + fourth,
        c * 25_172 + second + third,
        b * 16_819 + second + fourth,
        a * 2_446 + first + third,
    ];
    let round = |value: i32| (value + (1 << (shift - 1))) >> shift;
    std::array::from_fn(|place| match place {
        0..4 => round(even[place] + odd[place]),
        _ => round(even[7 - place] - odd[7 - place]),
    })
}

const CONSTANT_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// Coefficients of pictures are within some 1,100; sums of two of these fit 16 bits.
const MOST_INPUT: i32 = 8_191;

/// So do those of two of these, of which pictures reach some 12,000.
const MOST_HALFWAY: i32 = 16_383;

/// The C code looks its samples up in a table that repeats itself beyond.
const MOST_OUTPUT: i32 = 383;
