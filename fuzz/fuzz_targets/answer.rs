//! Any answer in any format: its parts are the same as one token and byte by byte, and calls are numbered in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_core::answer::{AnswerParser, FORMATS, Kind, Part, Setup};
use llm_core::tokenizer::decode::stream::Detokenizer;
use llm_core::tokenizer::tokens::TokenTable;

fuzz_target!(|data: (u8, bool, &str, &[u8])| {
    let (choice, starts_in_reasoning, stop, answer) = data;
    let setup = || Setup {
        format: Some(&FORMATS[choice as usize % FORMATS.len()]),
        reasoning: Some(("<think>".to_owned(), "</think>".to_owned())),
        starts_in_reasoning,
        ..Setup::default()
    };
    let whole = parts(setup(), stop, &[answer]);
    assert_eq!(parts(setup(), stop, &answer.chunks(1).collect::<Vec<_>>()), whole);
    let calls: Vec<_> = whole.iter().filter(|part| part.kind == Kind::Call).map(|part| part.call).collect();
    assert_eq!(calls, (0..calls.len()).map(Some).collect::<Vec<_>>());
});

/// The parts of the tokens' text with adjacent ones of a kind joined.
fn parts(setup: Setup, stop: &str, tokens: &[&[u8]]) -> Vec<Part> {
    let stop = if stop.is_empty() { vec![] } else { vec![stop.to_owned()] };
    let table = TokenTable::new(tokens.iter().map(|bytes| Some(bytes.to_vec())).collect(), &[]).expect("ids are fine");
    let mut detokenizer = Detokenizer::new(stop, true).expect("no stop string is empty");
    let mut parser = AnswerParser::new(setup).expect("the markers are not empty");
    let mut found: Vec<Part> = Vec::new();
    for id in 0..tokens.len() {
        found.extend(parser.push(&detokenizer.push(&table, id as u32, true).text));
    }
    found.extend(parser.push(&detokenizer.finish()));
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
