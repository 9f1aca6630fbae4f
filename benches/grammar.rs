//! Times masks over a workload of `bench_grammar.py`: each document is consumed token by token, and each mask timed alone.
//!
//! Usage: cargo bench --bench grammar -- VOCABULARY WORKLOAD, a tiktoken file and a JSON list of `{schema, ids}`. Prints
//! JSON with the nanoseconds of every mask, of every compilation, and of building the vocabulary's trie.

use std::sync::Arc;
use std::time::Instant;

use llm_core::grammar::{GrammarCompiler, GrammarSource, Vocabulary};
use serde_json::{Value, json};

struct Words(Vec<Vec<u8>>);

impl Vocabulary for Words {
    fn num_ids(&self) -> usize {
        self.0.len()
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.get(id as usize).map(Vec::as_slice)
    }

    fn is_special_token(&self, _: u32) -> bool {
        false
    }
}

fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut num_bits, mut bytes) = (0_u32, 0, Vec::new());
    for value in text.chars().filter_map(|letter| LETTERS.find(letter)) {
        bits = bits << 6 | value as u32;
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
        }
    }
    bytes
}

fn main() {
    let mut files = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(vocabulary), Some(workload)) = (files.next(), files.next()) else {
        println!("no workload: run benches/bench_grammar.py");
        return;
    };
    let read = |path: &str| std::fs::read_to_string(path).expect("the file is readable");
    let words = read(&vocabulary).lines().filter_map(|line| line.split(' ').next().map(base64)).collect();
    let cases: Vec<Value> = serde_json::from_str(&read(&workload)).expect("the workload is JSON");
    let compiler = GrammarCompiler::new(Arc::new(Words(words)), vec![]);
    let began = Instant::now();
    let warm = GrammarSource::JsonSchema { schema: "{}".to_owned(), is_compact: false };
    compiler.compile(&warm).expect("the empty schema compiles");
    let trie = began.elapsed().as_nanos() as u64;
    let (mut masks, mut compilations) = (Vec::new(), Vec::new());
    for case in &cases {
        let source = GrammarSource::JsonSchema { schema: case["schema"].to_string(), is_compact: false };
        let began = Instant::now();
        let grammar = compiler.compile(&source).expect("the schema compiles");
        compilations.push(began.elapsed().as_nanos() as u64);
        let mut matcher = grammar.start();
        for id in case["ids"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
            let began = Instant::now();
            let allowed = matcher.allowed().expect("the grammar goes on");
            masks.push(began.elapsed().as_nanos() as u64);
            assert!(allowed.contains(id as u32), "the mask forbids token {id} of {case}");
            matcher.consume(id as u32).expect("the grammar allows the token");
        }
    }
    println!("{}", json!({ "masks": masks, "compilations": compilations, "trie": trie }));
}
