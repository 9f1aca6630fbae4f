//! Answers cut in any way have the parts of the whole, and calls written in a format are read back.

use llm_core::answer::{FORMATS, Kind, Part};
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

/// Each way to cut the answer in two, and the answer character by character.
fn assert_splits_agree(format: &str, answer: &str) -> Result<Vec<Part>, TestCaseError> {
    let tools = || with_tools(format, &[]);
    let whole = parsed(tools(), &[answer]);
    let letters: Vec<String> = answer.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    prop_assert_eq!(&parsed(tools(), &letters), &whole);
    for (cut, _) in answer.char_indices() {
        prop_assert_eq!(&parsed(tools(), &[&answer[..cut], &answer[cut..]]), &whole, "cut at {}", cut);
    }
    Ok(joined(whole))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn calls_are_read_back_from_every_split(calls in calls(), index in 0..FORMATS.len()) {
        let format = FORMATS[index].name;
        let answer = format!("<think>why?</think>\n{}", written(format, &calls));
        let parts = assert_splits_agree(format, &answer)?;
        prop_assert_eq!(parts[0].kind, Kind::Reasoning);
        prop_assert_eq!(read_back(&parts), calls);
        prop_assert!(parts.iter().all(|part| part.kind != Kind::Text), "{:?}", parts);
    }

    #[test]
    fn any_answer_has_the_same_parts_from_every_split(
        pieces in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "<parameter=a>", "</parameter>",
                "</function>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|python_tag|>",
                "{\"name\": \"f\", ", "\"arguments\": ", "{\"a\": 1}", "}", "]", "[", "f(", "a=", "'b'", ")", ", ", "\n", "\"",
            ]).prop_map(str::to_owned),
            "\\PC{0,4}",
        ], 0..10),
        index in 0..FORMATS.len(),
    ) {
        assert_splits_agree(FORMATS[index].name, &pieces.concat())?;
    }

    #[test]
    fn nothing_is_lost_from_plain_text(answer in "[a-z <>{}\\[\\]\n]{0,30}", index in 0..FORMATS.len()) {
        let texts: String = parsed(setup(FORMATS[index].name), &[&answer]).into_iter().map(|part| part.text).collect();
        prop_assert_eq!(texts, answer);
    }
}
