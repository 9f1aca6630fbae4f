//! Any answer in any format: its parts are the same whole and letter by letter, and calls are numbered in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_core::answer::{AnswerParser, FORMATS, Kind, Part, Setup};

fuzz_target!(|data: (u8, bool, &str)| {
    let (choice, starts_in_reasoning, answer) = data;
    let setup = || Setup {
        format: Some(&FORMATS[choice as usize % FORMATS.len()]),
        reasoning: Some(("<think>".to_owned(), "</think>".to_owned())),
        starts_in_reasoning,
        ..Setup::default()
    };
    let letters = answer.char_indices().map(|(start, letter)| &answer[start..start + letter.len_utf8()]);
    let whole = parts(setup(), [answer].into_iter());
    assert_eq!(parts(setup(), letters), whole);
    let calls: Vec<_> = whole.iter().filter(|part| part.kind == Kind::Call).map(|part| part.call).collect();
    assert_eq!(calls, (0..calls.len()).map(Some).collect::<Vec<_>>());
});

/// The parts with adjacent ones of a kind joined.
fn parts<'a>(setup: Setup, pieces: impl Iterator<Item = &'a str>) -> Vec<Part> {
    let mut parser = AnswerParser::new(setup).expect("the markers are not empty");
    let mut found: Vec<Part> = pieces.flat_map(|piece| parser.push(piece)).collect();
    found.extend(parser.finish());
    found.dedup_by(|next, last| {
        let joins = next.kind == last.kind && next.call == last.call && next.kind != Kind::Call;
        if joins {
            last.text.push_str(&next.text);
        }
        joins
    });
    found
}
