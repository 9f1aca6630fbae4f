//! Answers whose tokens are cut in any way have the parts of the whole, and calls written in a format are read back.

use llm_core::answer::{AnswerParser, FORMATS, Kind, Part, Setup};
use llm_core::tokenizer::decode::stream::Detokenizer;
use llm_core::tokenizer::tokens::TokenTable;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{joined, parsed, setup, with_tools};

type Call = (String, Map<String, Value>);

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1000..1000i32).prop_map(|number| json!(f64::from(number) / 8.0)),
        "\\PC{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["</tool_call>", "{\"", "\\", "\n", "]}'", "é語😀", "<think>"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"' ]{1,4}", inner, 0..3)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let arguments = prop::collection::btree_map("[a-z_]{1,5}", values(), 0..3);
    let call = ("[a-z][a-z_0-9]{0,6}", arguments).prop_map(|(name, entries)| (name, entries.into_iter().collect()));
    prop::collection::vec(call, 1..4)
}

/// The calls as a model that uses the format writes them.
fn written(format: &str, calls: &[Call]) -> String {
    let object =
        |key: &str, (name, arguments): &Call| format!("{{\"name\": {}, \"{key}\": {}}}", json!(name), json!(arguments));
    let objects = |key: &str| calls.iter().map(|call| object(key, call)).collect::<Vec<_>>();
    let each = |write: &dyn Fn(&Call) -> String| calls.iter().map(write).collect::<Vec<_>>().join("\n");
    match format {
        "hermes" => each(&|call| format!("<tool_call>\n{}\n</tool_call>", object("arguments", call))),
        "qwen_coder" => each(&|(name, arguments)| {
            let parameter = |(key, value): (&String, &Value)| format!("<parameter={key}>\n{value}\n</parameter>\n");
            let parameters: String = arguments.iter().map(parameter).collect();
            format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
        }),
        "llama3_json" => objects("parameters").join("; "),
        "llama4_pythonic" => {
            let call = |(name, arguments): &Call| {
                let keywords = arguments.iter().map(|(key, value)| format!("{key}={}", python(value)));
                format!("{name}({})", keywords.collect::<Vec<_>>().join(", "))
            };
            format!("[{}]", calls.iter().map(call).collect::<Vec<_>>().join(", "))
        }
        "mistral" => each(&|(name, arguments)| format!("[TOOL_CALLS]{name}[ARGS]{}", json!(arguments))),
        "deepseek" => {
            let call = |(name, arguments): &Call| {
                format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{}<｜tool▁call▁end｜>", json!(arguments))
            };
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls.iter().map(call).collect::<String>())
        }
        _ => format!("[{}]", objects("arguments").join(", ")),
    }
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(truth) => if *truth { "True" } else { "False" }.to_owned(),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n")),
        Value::Array(values) => format!("[{}]", values.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let entry =
                |(key, value): (&String, &Value)| format!("{}: {}", python(&Value::from(key.as_str())), python(value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Number(number) => number.to_string(),
    }
}

fn read_back(parts: &[Part]) -> Vec<Call> {
    let mut calls: Vec<(String, String)> = Vec::new();
    for part in parts {
        match part.kind {
            Kind::Call => calls.push((part.text.clone(), String::new())),
            Kind::Arguments => calls[part.call.expect("arguments have a call")].1.push_str(&part.text),
            _ => {}
        }
    }
    calls
        .into_iter()
        .map(|(name, arguments)| (name, serde_json::from_str(&arguments).expect("arguments are JSON")))
        .collect()
}

/// What a server makes of tokens: the parts of the text, and the stop string that ended it.
fn answered(setup: Setup, tokens: &[&[u8]], stop: &[String]) -> (Vec<Part>, Option<usize>) {
    let table = TokenTable::new(tokens.iter().map(|bytes| Some(bytes.to_vec())).collect(), &[]).expect("no id is odd");
    let mut detokenizer = Detokenizer::new(stop.to_vec(), true).expect("no stop string is empty");
    let mut parser = AnswerParser::new(setup).expect("the setup is valid");
    let mut parts = Vec::new();
    for id in 0..tokens.len() {
        parts.extend(parser.push(&detokenizer.push(&table, id as u32, true).text));
    }
    parts.extend(parser.push(&detokenizer.finish()));
    parts.extend(parser.finish());
    (joined(parts), detokenizer.stopped())
}

/// The bytes in pieces that end at `cuts`, which are taken modulo the length.
fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    edges.extend([0, bytes.len()]);
    edges.sort_unstable();
    edges.windows(2).map(|edge| &bytes[edge[0]..edge[1]]).collect()
}

/// Cuts the answer into tokens at `cuts`, at each byte, and in two at each border of bytes: the parts and the stop
/// string must be those of the answer as one token.
fn assert_splits_agree(
    format: &str,
    answer: &[u8],
    stop: &[String],
    cuts: &[Vec<usize>],
) -> Result<Vec<Part>, TestCaseError> {
    let made = |tokens: &[&[u8]]| answered(with_tools(format, &[]), tokens, stop);
    let whole = made(&[answer]);
    for cuts in cuts {
        prop_assert_eq!(&made(&cut(answer, cuts)), &whole, "cut at {:?}", cuts);
    }
    prop_assert_eq!(&made(&answer.chunks(1).collect::<Vec<_>>()), &whole);
    for border in 0..answer.len() {
        prop_assert_eq!(&made(&cut(answer, &[border])), &whole, "cut at {}", border);
    }
    Ok(whole.0)
}

fn many_cuts() -> impl Strategy<Value = Vec<Vec<usize>>> {
    prop::collection::vec(prop::collection::vec(any::<usize>(), 1..40), 8)
}

/// Stop strings of which some are in the answer; the texts that they are taken from are cut at characters.
fn stops_within(answer: &str, places: &[(usize, usize)]) -> Vec<String> {
    let letters: Vec<char> = answer.chars().collect();
    let text = |&(start, len): &(usize, usize)| letters.iter().skip(start % (letters.len() + 1)).take(len).collect();
    places.iter().map(text).filter(|text: &String| !text.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn calls_are_read_back_from_every_split(calls in calls(), index in 0..FORMATS.len(), cuts in many_cuts()) {
        let format = FORMATS[index].name;
        let answer = format!("<think>why? 語</think>\n{}", written(format, &calls));
        let parts = assert_splits_agree(format, answer.as_bytes(), &[], &cuts)?;
        prop_assert_eq!(parts[0].kind, Kind::Reasoning);
        prop_assert_eq!(read_back(&parts), calls);
        prop_assert!(parts.iter().all(|part| part.kind != Kind::Text), "{:?}", parts);
    }

    #[test]
    fn stop_strings_end_calls_and_text_alike_in_every_split(
        calls in calls(),
        index in 0..FORMATS.len(),
        places in prop::collection::vec((any::<usize>(), 1..6_usize), 1..4),
        cuts in many_cuts(),
    ) {
        let answer = format!("<think>é</think>So: {}\n語", written(FORMATS[index].name, &calls));
        let stop = stops_within(&answer, &places);
        assert_splits_agree(FORMATS[index].name, answer.as_bytes(), &stop, &cuts)?;
    }

    #[test]
    fn any_answer_has_the_same_parts_from_every_split(
        pieces in prop::collection::vec(prop_oneof![
            8 => prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "<parameter=a>", "</parameter>",
                "</function>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|python_tag|>",
                "{\"name\": \"f\", ", "\"arguments\": ", "{\"a\": 1}", "}", "]", "[", "f(", "a=", "'b'", ")", ", ", "\n", "\"",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            8 => "\\PC{0,4}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 1..4), // rarely a character
        ], 0..10),
        stop in prop::collection::vec("[a}\"\n<語\u{fffd}]{1,2}", 0..3),
        index in 0..FORMATS.len(),
        cuts in many_cuts(),
    ) {
        assert_splits_agree(FORMATS[index].name, &pieces.concat(), &stop, &cuts)?;
    }

    #[test]
    fn nothing_is_lost_from_plain_text(answer in "[a-z <>{}\\[\\]\n]{0,30}", index in 0..FORMATS.len()) {
        let texts: String = parsed(setup(FORMATS[index].name), &[&answer]).into_iter().map(|part| part.text).collect();
        prop_assert_eq!(texts, answer);
    }
}
