//! Images become rows as Pillow makes them, and only images that every decoder reads alike are taken.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use doorward_images::{ExifOrientation, Interpolation, Pictures, Resize};
use doorward_images::{Frame, decode};
use flate2::Crc;
use image::{ExtendedColorType, ImageEncoder};
use safetensors::SafeTensors;

const LIMIT: usize = 1 << 20;

/// Files, and pictures with their shapes, by name.
struct Golden {
    files: BTreeMap<String, Vec<u8>>,
    pictures: Vec<(String, [usize; 3], Vec<u8>)>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures.safetensors");
    let bytes = std::fs::read(path).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut golden = Golden { files: BTreeMap::new(), pictures: Vec::new() };
    for (name, tensor) in tensors.tensors() {
        if let Some(file) = name.strip_prefix("file/") {
            golden.files.insert(file.to_owned(), tensor.data().to_vec());
        } else {
            let shape = tensor.shape().try_into().expect("C, H, W");
            golden.pictures.push((name, shape, tensor.data().to_vec()));
        }
    }
    golden
}

fn file(name: &str) -> Vec<u8> {
    golden().files.remove(name).expect("a file of that name")
}

/// The frame that a golden picture's name tells.
fn frame(name: &str, shape: [usize; 3]) -> Frame {
    let parts: Vec<&str> = name.split('/').collect();
    let resize = match parts[2].split_once('-') {
        None => Resize::None,
        Some(("exact", _)) => Resize::Exact,
        Some((_, rest)) => {
            let side = rest.split('-').next().and_then(|side| side.parse().ok());
            Resize::Crop(side.and_then(NonZeroUsize::new).expect("a side"))
        }
    };
    let interpolation = match parts[3] {
        "bicubic" => Interpolation::Bicubic,
        "bilinear" => Interpolation::Bilinear,
        "lanczos" => Interpolation::Lanczos,
        _ => Interpolation::Nearest,
    };
    let exif_orientation = ExifOrientation::Apply;
    let pictures = Pictures { resize, interpolation, exif_orientation, ..Pictures::default() };
    Frame::new(shape, pictures).expect("a frame")
}

fn plain(shape: [usize; 3]) -> Frame {
    Frame::from(shape)
}

/// The reason why an image is refused.
fn refusal(bytes: &[u8], frame: &Frame) -> String {
    decode(bytes, frame, LIMIT).expect_err("refused").to_string()
}

/// An image of the image crate's making.
fn png(width: u32, height: u32, colours: ExtendedColorType, bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    image::codecs::png::PngEncoder::new(&mut file)
        .write_image(bytes, width, height, colours)
        .expect("memory");
    file
}

/// A chunk with its checksum.
fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(name);
    crc.update(content);
    [&(content.len() as u32).to_be_bytes(), &name[..], content, &crc.sum().to_be_bytes()].concat()
}

/// The file with a chunk behind its header.
fn with_chunk(png: &[u8], name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let (head, rest) = png.split_at(8 + 25);
    [head, &chunk(name, content), rest].concat()
}

/// The file with these bytes before its first segment of a kind.
fn before(jpeg: &[u8], marker: u8, insert: &[u8]) -> Vec<u8> {
    let at = jpeg.windows(2).position(|pair| pair == [0xff, marker]).expect("such a segment");
    [&jpeg[..at], insert, &jpeg[at..]].concat()
}

fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).expect("short").to_be_bytes();
    [&[0xff, marker], &length[..], content].concat()
}

#[test]
fn pngs_are_resized_as_pillow_does_bit_for_bit() {
    let Golden { files, pictures } = golden();
    let mut compared = 0;
    for (name, shape, expected) in pictures.iter().filter(|(name, ..)| name.contains(".png/")) {
        let source = name.split('/').nth(1).expect("a source");
        let decoded = decode(&files[source], &frame(name, *shape), LIMIT).expect(name);
        assert!(decoded.bytes == *expected, "{name} differs");
        compared += 1;
    }
    assert!(compared > 150, "{compared} pictures compared");
}

#[test]
fn jpegs_are_decoded_as_pillow_does_bit_for_bit() {
    let Golden { files, pictures } = golden();
    let (mut whole, mut damaged) = (0, 0);
    for (name, shape, expected) in pictures.iter().filter(|(name, ..)| name.contains(".jpg/")) {
        let source = name.split('/').nth(1).expect("a source");
        let is_damaged = source.starts_with("damaged");
        if source == "progressive.jpg" {
            continue;
        }
        match decode(&files[source], &frame(name, *shape), LIMIT) {
            Ok(decoded) => assert!(decoded.bytes == *expected, "{name} differs"),
            // Pillow paints over damage.
            Err(_) if is_damaged => continue,
            Err(error) => panic!("{name}: {error}"),
        }
        *if is_damaged { &mut damaged } else { &mut whole } += 1;
    }
    println!("{whole} whole and {damaged} damaged pictures are the same");
    assert!(whole >= 22 && damaged >= 10, "{whole} whole, {damaged} damaged");
}

#[test]
fn orientation_is_applied_ignored_or_refused() {
    let Golden { files, .. } = golden();
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("turned")) {
        let lies = name.starts_with("turned-1");
        let shape = [3, 23, 61];
        match decode(bytes, &plain(shape), LIMIT) {
            Ok(_) => assert!(lies, "{name}"),
            Err(error) => {
                assert!(!lies && error.to_string().contains("orientation"), "{name}: {error}")
            }
        }
        let ignoring =
            Pictures { exif_orientation: ExifOrientation::Ignore, ..Pictures::default() };
        let ignoring = Frame::new(shape, ignoring).expect("a frame");
        decode(bytes, &ignoring, LIMIT).expect("not looked at");
    }
    // Data that two readers might read in two ways.
    let (jpeg, shape) = (file("turned-6.jpg"), [3, 23, 61]);
    let exif = segment(0xe1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0");
    assert!(refusal(&before(&jpeg, 0xdb, &exif), &plain(shape)).contains("EXIF data twice"));
    let jpeg = file("s420.jpg");
    let shape = [3, 90, 67];
    let cases: [(&[u8], &str); 4] = [
        (b"Exif\0\0II*\0\x08\0\0\0\x05\0", "cut short"),
        (b"Exif\0\0XX*\0\x08\0\0\0\0\0", "neither II nor MM"),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0", "none of the eight"),
        (b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>", "in XMP"),
    ];
    for (content, reason) in cases {
        let error = refusal(&before(&jpeg, 0xdb, &segment(0xe1, content)), &plain(shape));
        assert!(error.contains(reason), "{error}");
    }
    let upright =
        segment(0xe1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>1</tiff:Orientation>");
    decode(&before(&jpeg, 0xdb, &upright), &plain(shape), LIMIT).expect("upright");
    let png = file("small.png");
    for (name, content) in [
        (b"tEXt", &b"Raw profile type exif\0\n"[..]),
        (b"zTXt", b"raw profile type APP1\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0xx"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation=\"3\""),
    ] {
        let error = refusal(&with_chunk(&png, name, content), &plain([3, 5, 4]));
        assert!(error.contains("orientation, possibly"), "{error}");
    }
    decode(&with_chunk(&png, b"tEXt", b"Title\0x"), &plain([3, 5, 4]), LIMIT).expect("a title");
}

#[test]
fn pngs_that_decoders_may_read_differently_are_refused() {
    let plain = plain([1, 2, 2]);
    let good = png(2, 2, ExtendedColorType::L8, &[1, 2, 3, 4]);
    assert_eq!(decode(&good, &plain, LIMIT).expect("good").bytes, [1, 2, 3, 4]);
    let changed = |at: usize, byte: u8| {
        let mut header = good[16..29].to_vec();
        header[at] = byte;
        [&good[..8], &chunk(b"IHDR", &header), &good[33..]].concat()
    };
    let twice_data = {
        let data = good.windows(4).position(|name| name == b"IDAT").expect("data") - 4;
        let end = good.len() - 12;
        [&good[..end], &chunk(b"tEXt", b"a\0b"), &good[data..end], &good[end..]].concat()
    };
    let mut damaged = good.clone();
    let last = damaged.len() - 5;
    damaged[last] ^= 1;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (png(2, 2, ExtendedColorType::La8, &[0; 8]), "alpha"),
        (png(2, 2, ExtendedColorType::Rgba8, &[0; 16]), "alpha"),
        (png(2, 2, ExtendedColorType::L16, &[0; 8]), "16 bits"),
        (png(2, 2, ExtendedColorType::Rgb16, &[0; 24]), "16 bits"),
        (changed(9, 3), "palette"),
        (changed(8, 4), "4 bits"),
        (changed(12, 1), "interlaced"),
        (changed(10, 1), "unknown method"),
        (changed(3, 0), "0 x 2"),
        (with_chunk(&good, b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]), "APNG"),
        (with_chunk(&good, b"fdAT", &[0; 8]), "APNG"),
        (with_chunk(&good, b"tRNS", &[0, 1]), "transparency"),
        (with_chunk(&good, b"CgBI", &[0; 4]), "CgBI"),
        (with_chunk(&good, b"IHDR", &good[16..29]), "two IHDR"),
        (twice_data, "between its IDAT"),
        (damaged, "checksum"),
        ([&good[..], b"\0"].concat(), "1 bytes follow"),
        ([&good[..], &good[..]].concat(), "bytes follow"),
        (good[..good.len() - 12].to_vec(), "before its IEND"),
        (good[..40].to_vec(), "longer than what is left"),
        (b"GIF89a".to_vec(), "begins with bytes [47, 49, 46, 38]"),
        (b"RIFF\0\0\0\0WEBP".to_vec(), "expected those of a PNG or JPEG"),
        (Vec::new(), "begins with bytes []"),
    ];
    for (bytes, reason) in cases {
        let error = refusal(&bytes, &plain);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    for length in 0..good.len() {
        decode(&good[..length], &plain, LIMIT).expect_err("cut short");
    }
}

#[test]
fn jpegs_that_decoders_may_read_differently_are_refused() {
    let (plain, grey) = (plain([3, 90, 67]), file("grey.jpg"));
    let good = file("s420.jpg");
    decode(&good, &plain, LIMIT).expect("good");
    decode(&grey, &plain, LIMIT).expect("grey");
    let edited = |jpeg: &[u8], marker: u8, at: usize, byte: u8| {
        let start = jpeg.windows(2).position(|pair| pair == [0xff, marker]).expect("such");
        let mut jpeg = jpeg.to_vec();
        jpeg[start + 4 + at] = byte;
        jpeg
    };
    let frame = |at, byte| edited(&good, 0xc0, at, byte);
    let restarts = file("restarts.jpg");
    let first = restarts.windows(2).position(|pair| pair == [0xff, 0xd0]).expect("a restart");
    let mut miscounted = restarts.clone();
    miscounted[first + 1] = 0xd3;
    let table = {
        let at = good.windows(2).position(|pair| pair == [0xff, 0xdb]).expect("a table");
        let length = usize::from(u16::from_be_bytes([good[at + 2], good[at + 3]]));
        good[at..at + 2 + length].to_vec()
    };
    let codes = segment(0xc4, &[&[0, 1][..], &[0; 15], &[0]].concat());
    let adobe =
        |transform| segment(0xee, &[b"Adobe\0\x64\0\0\0\0"[..].to_vec(), vec![transform]].concat());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        ([&good[..], &good[..]].concat(), "bytes follow"),
        ([&good[..], b"\xff"].concat(), "1 bytes follow"),
        (good[..good.len() - 2].to_vec(), "before its end marker"),
        ([&good[..good.len() - 2], &[0, 0xff, 0xd9]].concat(), "goes on behind the last block"),
        ([&good[..good.len() / 2], &[0xff, 0xd9]].concat(), "ends too early"),
        (before(&good, 0xc0, &adobe(0)), "not YCbCr"),
        (before(&good, 0xc0, &adobe(2)), "not YCbCr"),
        (before(&good, 0xda, &table), "quantisation table twice"),
        (before(&good, 0xda, &segment(0xcc, &[0, 0])), "arithmetic"),
        (before(&good, 0xda, &segment(0xdc, &[0, 1])), "segment 0xdc"),
        (before(&good, 0xd9, &segment(0xfe, b"x")), "more than one scan"),
        (file("progressive.jpg"), "progressive"),
        (before(&good, 0xda, &codes), "Huffman table twice"),
        (frame(0, 12), "12 bits"),
        (frame(5, 4), "4 channels"),
        (frame(5, 2), "2 channels"),
        (frame(6, b'R'), "channels called"),
        (frame(7, 0x41), "sampled"),
        (frame(1, 0xff), "expected at most 1048576"),
        (edited(&good, 0xda, 7, 1), "scan header"),
        (before(&good, 0xc0, &segment(0xc1, &[8, 0, 90, 0, 67, 1, 1, 0x11, 0])), "two frames"),
        (before(&good, 0xda, &segment(0xdd, &[0, 3])), "goes on behind the last block"),
        (miscounted, "do not count up"),
        (before(&good, 0xda, b"\xff"), "segment"),
        (before(&good, 0xda, b"ab"), "no segment"),
    ];
    for (bytes, reason) in cases {
        let error = refusal(&bytes, &plain);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    for length in 0..good.len() {
        decode(&good[..length], &plain, LIMIT).expect_err("cut short");
    }
}

#[test]
fn large_and_misshapen_pictures_are_refused_before_they_are_decoded() {
    let huge = {
        let mut header = 60_000_u32.to_be_bytes().repeat(2);
        header.extend([8, 2, 0, 0, 0]);
        let signature = b"\x89PNG\r\n\x1a\n";
        [&signature[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &[]), &chunk(b"IEND", &[])]
            .concat()
    };
    let exact = Pictures { resize: Resize::Exact, ..Pictures::default() };
    let exact = Frame::new([3, 8, 8], exact).expect("a frame");
    assert!(refusal(&huge, &exact).contains("60000 x 60000 pixels, expected at most 1048576"));
    let crop = |side| Pictures {
        resize: Resize::Crop(NonZeroUsize::new(side).expect("a side")),
        ..Pictures::default()
    };
    let error = Frame::new([3, 8, 9], crop(8)).expect_err("nothing to cut").to_string();
    assert!(error.contains("at least the model's 8 x 9"), "{error}");
    let thin = png(1, 300_000, ExtendedColorType::L8, &vec![7; 300_000]);
    let frame = Frame::new([3, 8, 8], crop(224)).expect("a frame");
    assert!(refusal(&thin, &frame).contains("too long to resize"));
    assert!(refusal(&file("small.png"), &plain([3, 8, 8])).contains("4 x 5 pixels"));
    assert!(refusal(&file("small.png"), &plain([2, 5, 4])).contains("the model takes 2"));
}

/// Whole and damaged JPEGs of `tests/golden/pictures.py --folder DIR`, against Pillow's pixels.
#[test]
fn jpegs_of_a_folder_are_decoded_as_pillow_does() {
    let Some(folder) = std::env::var_os("DOORWARD_PICTURES") else {
        println!("skipped: DOORWARD_PICTURES is not set");
        return;
    };
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let kind = if name.starts_with("whole") { "whole" } else { "damaged" };
        let bytes = std::fs::read(&path).expect("readable");
        let pillow = std::fs::read(path.with_extension("rgb")).ok();
        let cursor = std::io::Cursor::new(&bytes);
        let size = image::ImageReader::with_format(cursor, image::ImageFormat::Jpeg);
        let decoded = size.into_dimensions().ok().and_then(|(width, height)| {
            decode(&bytes, &plain([3, height as usize, width as usize]), LIMIT).ok()
        });
        let outcome = match (decoded, pillow) {
            (None, None) => "refused by both",
            (None, Some(_)) => "refused here only",
            (Some(_), None) => "refused by Pillow only",
            (Some(decoded), Some(pillow)) => {
                let plane = decoded.bytes.len() / 3;
                let interleaved: Vec<u8> = (0..3 * plane)
                    .map(|index| decoded.bytes[index % 3 * plane + index / 3])
                    .collect();
                assert!(interleaved == pillow, "{name} differs");
                "the same"
            }
        };
        *counts.entry((kind, outcome)).or_default() += 1;
    }
    println!("{counts:?}");
    assert!(!counts.contains_key(&("whole", "refused here only")), "{counts:?}");
    assert!(counts[&("whole", "the same")] > 0, "{counts:?}");
}
