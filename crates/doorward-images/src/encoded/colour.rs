//! From a JPEG's planes to pixels, as libjpeg-turbo's `jdsample.c` ("fancy" upsampling) and
//! `jdcolor.c` compute them, bit for bit.

/// One channel's samples.
pub(super) struct Plane {
    /// The values of a row of `samples`.
    pub(super) stride: usize,
    pub(super) samples: Vec<u8>,
    /// Samples that are part of the picture.
    pub(super) width: usize,
    pub(super) height: usize,
    /// The number of pixels a sample stands for, across and down: 1 and 1, 2 and 1, or 2 and 2.
    pub(super) reach: [usize; 2],
}

// === impl Plane ===

impl Plane {
    /// One row of a picture of this width.
    pub(super) fn row(&self, row: usize, width: usize, pixels: &mut Vec<u8>) {
        let [across, down] = self.reach;
        let near = self.line(row / down);
        pixels.clear();
        match (across, down) {
            (1, _) => pixels.extend_from_slice(near),
            // Too narrow to be smoothed.
            _ if self.width <= 2 => pixels.extend(near.iter().flat_map(|&sample| [sample; 2])),
            (_, 1) => {
                let line: Vec<u32> = near.iter().map(|&sample| sample.into()).collect();
                smooth(&line, 2, [1, 2], pixels);
            }
            _ => {
                // The nearer neighbour; at an edge, the row itself.
                let far = match row % 2 {
                    0 => self.line((row / 2).saturating_sub(1)),
                    _ => self.line((row / 2 + 1).min(self.height - 1)),
                };
                let sum = |(&near, &far): (&u8, &u8)| 3 * u32::from(near) + u32::from(far);
                let line: Vec<u32> = near.iter().zip(far).map(sum).collect();
                smooth(&line, 4, [8, 7], pixels);
            }
        }
        pixels.truncate(width);
    }

    fn line(&self, row: usize) -> &[u8] {
        &self.samples[row * self.stride..][..self.width]
    }
}

/// Twice as many values, each three quarters of its own and a quarter of its neighbour, divided by
/// 2^`shift` in all; the outermost ones are their own neighbours.
fn smooth(line: &[u32], shift: u32, bias: [u32; 2], pixels: &mut Vec<u8>) {
    let last = line.len() - 1;
    for (place, &value) in line.iter().enumerate() {
        let before = line[place.saturating_sub(1)];
        let after = line[(place + 1).min(last)];
        pixels.push(((3 * value + before + bias[0]) >> shift) as u8);
        pixels.push(((3 * value + after + bias[1]) >> shift) as u8);
    }
}

/// Appends the pixels of rows of Y, Cb and Cr.
pub(super) fn to_rgb([luma, blue, red]: [&[u8]; 3], pixels: &mut Vec<u8>) {
    const HALF: i32 = 1 << 15;
    for ((&y, &cb), &cr) in luma.iter().zip(blue).zip(red) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let red = y + ((91_881 * cr + HALF) >> 16);
        let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        let blue = y + ((116_130 * cb + HALF) >> 16);
        pixels.extend([red, green, blue].map(|value| value.clamp(0, 255) as u8));
    }
}
