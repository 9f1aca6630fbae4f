//! Tests of `llm_core::corpus`.
#![expect(clippy::unwrap_used, reason = "in a test it is the assertion")]

use std::convert::Infallible;

use llm_core::corpus::{CutOptions, DocumentCutter, JsonLines, TextBlock};
use proptest::prelude::*;

fn cutter(piece_bytes: usize, max_piece_bytes: usize) -> DocumentCutter {
    let separator = Some("<|>".to_owned());
    DocumentCutter::new(CutOptions { separator, at_line_ends: true, piece_bytes, max_piece_bytes })
}

/// The documents of blocks; the last entry is what no document ends.
fn documents(blocks: &[TextBlock]) -> Vec<String> {
    let mut found = vec![String::new()];
    for (text, ends) in blocks.iter().flat_map(TextBlock::pieces) {
        found.last_mut().unwrap().push_str(text);
        if ends {
            found.push(String::new());
        }
    }
    found
}

/// Documents found the slow way.
fn expected(text: &str) -> Vec<String> {
    let is_space = |character: char| character.is_whitespace() || ('\x1c'..='\x1f').contains(&character);
    let mut found = Vec::new();
    for (index, part) in text.split("<|>").enumerate() {
        let bare = part.strip_prefix("\r\n").or_else(|| part.strip_prefix('\n')).filter(|_| index > 0).unwrap_or(part);
        if !bare.chars().all(is_space) {
            found.push(bare.to_owned());
        }
    }
    found.push(String::new());
    found
}

proptest! {
    #[test]
    fn any_cut_of_the_bytes_gives_the_same_documents(
        text in "[ab \n\r|<>é🎭\u{2028}]{0,80}",
        step in 1..9usize,
        piece in 1..20usize,
        longest in 1..40usize,
    ) {
        let mut cutter = cutter(piece, longest.max(piece));
        let mut blocks = Vec::new();
        for part in text.as_bytes().chunks(step) {
            cutter.push_bytes(part, false).unwrap();
            blocks.push(cutter.take());
        }
        cutter.push_bytes(b"", true).unwrap();
        blocks.push(cutter.take());
        prop_assert_eq!(documents(&blocks), expected(&text));
    }

    #[test]
    fn two_slices_are_the_whole(text in "[ab\né🎭]{1,60}", border in 0..200usize) {
        let mut cutter = cutter(4, 16);
        cutter.push_bytes(text.as_bytes(), true).unwrap();
        let block = cutter.take();
        let parts = [block.clone().slice(0..border), block.clone().slice(border..usize::MAX)];
        prop_assert_eq!(documents(&parts).concat(), documents(&[block]).concat());
        prop_assert!(parts[0].num_bytes() <= border);
    }
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_offset() {
    for (parts, words) in [
        ([&b"ab"[..], b"c\xff"], "byte 0xff at offset 3"),
        ([b"ab\xe2", b"\x82x"], "byte 0xe2 at offset 2"),
        ([b"a\xf0\x9f", b""], "byte 0xf0 at offset 1"),
    ] {
        let mut cutter = cutter(64, 64);
        let mut pushed = parts.iter().enumerate().map(|(at, part)| cutter.push_bytes(part, at + 1 == parts.len()));
        let error = pushed.find_map(Result::err).unwrap();
        assert!(error.to_string().ends_with(words), "{error}");
    }
}

#[test]
fn rows_are_documents_unless_one_is_no_text_of_its_own() {
    let mut cutter = cutter(4, 16);
    let values = "abé🎭".as_bytes();
    for offsets in [[0, 3, 8], [0, 2, 9], [-1, 2, 8], [2, 1, 8], [8, 2, 0]] {
        assert!(cutter.push_rows(values, &offsets).is_err(), "{offsets:?}");
    }
    cutter.push_rows(values, &[]).unwrap();
    cutter.push_rows(values, &[1, 4, 4, 8]).unwrap();
    assert_eq!(documents(&[cutter.take()]), ["bé", "🎭", ""]);
}

#[test]
fn lines_give_the_last_field_of_its_name_and_others_go_to_the_caller() {
    let data =
        b"{\"text\": \"a\\n\\u00e9\", \"n\": [1, {\"text\": 2}]}\n\n{\"text\": \"b\", \"text\": \"c\"}\n{\"body\": 1}";
    for step in [1, 7, data.len()] {
        let (mut cutter, mut lines) = (cutter(64, 64), JsonLines::new("text".to_owned()));
        let mut refused = Vec::new();
        let mut other = |number, line: &[u8]| {
            refused.push((number, line.to_vec()));
            Ok::<_, Infallible>("d".to_owned())
        };
        for part in data.chunks(step) {
            lines.push(part, false, &mut cutter, &mut other).unwrap();
        }
        lines.push(b"", true, &mut cutter, &mut other).unwrap();
        assert_eq!(documents(&[cutter.take()]), ["a\né", "c", "d", ""]);
        assert_eq!(refused, [(4, b"{\"body\": 1}".to_vec())]);
    }
}
