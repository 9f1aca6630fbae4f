//! Regular expressions that would take too long for one step of the lexer.
//!
//! The lexer of `llguidance` takes an expression's derivative by one byte at a time. It counts what that costs only
//! afterwards, and not at all for the first byte, so its limits come too late for an expression that costs seconds at once.

use llguidance::api::ParserLimits;
use llguidance::derivre::ExprRef;
use llguidance::derivre::raw::ExprSet;
use llguidance::earley::lexerspec::LexerSpec;

/// Largest number of alternatives that one byte may lead to, counted at each part of all expressions. An alternative costs
/// two units of the lexer's fuel and up to 8 bytes.
const MAX_ALTERNATIVES: usize = 250_000;

/// Kinds of expression, as `derivre` numbers them.
const EMPTY: u8 = 1;
const NOTHING: u8 = 2;
const NOT: u8 = 8;
const REPEAT: u8 = 9;
const CONCATENATION: u8 = 10;
const UNION: u8 = 11;
const INTERSECTION: u8 = 12;

/// Refuses expressions whose first steps would cost more than the limits allow.
///
/// # Errors
///
/// What is wrong, to stand after the setting's name.
pub(super) fn check(lexer: &LexerSpec, limits: &ParserLimits) -> Result<(), String> {
    let set = lexer.regex_builder.exprset();
    if num_alternatives(set) > MAX_ALTERNATIVES {
        return Err(
            "has a regular expression with too many optional parts in a row\nhint: use a bounded repeat such as a{0,99}"
                .to_owned(),
        );
    }
    match kinds(set).any(|(_, kind)| matches!(kind, NOT | INTERSECTION)) {
        true => check_first_bytes(lexer, limits.clone()),
        false => Ok(()),
    }
}

/// Every part of the expressions with its kind; a part comes after those that it is made of.
fn kinds(set: &ExprSet) -> impl Iterator<Item = (ExprRef, u8)> {
    (1..set.len() as u32).map(ExprRef::new).map(|part| (part, set.get_tag(part) as u8))
}

/// An optional part of a sequence lets the next byte belong to what follows as well, so that each suffix of a row of
/// optional parts has as many alternatives as it has parts.
fn num_alternatives(set: &ExprSet) -> usize {
    let mut widths = vec![0_usize; set.len()];
    let mut sum = 0_usize;
    for (part, kind) in kinds(set) {
        let width = |part: &ExprRef| widths[part.as_usize()];
        let width = match (kind, set.get_args(part)) {
            (EMPTY | NOTHING, _) => 0,
            (REPEAT, [inner]) => width(inner),
            (CONCATENATION, [first, rest]) if set.is_nullable(*first) => width(rest).saturating_add(1),
            (UNION, parts) => parts.iter().map(width).fold(0, usize::saturating_add),
            _ => 1,
        };
        widths[part.as_usize()] = width;
        sum = sum.saturating_add(if width > 1 { width } else { 0 });
    }
    sum
}

/// Takes the first step for every byte within the limits. Intersections and complements may take long to prove empty.
fn check_first_bytes(lexer: &LexerSpec, mut limits: ParserLimits) -> Result<(), String> {
    let complex = || "combines regular expressions that are too complex\nhint: make them smaller".to_owned();
    let mut states = lexer.to_regex_vec(&mut limits).map_err(|_| complex())?;
    states.set_fuel(limits.initial_lexer_fuel);
    let start = states.initial_state(&lexer.all_lexemes());
    let has_failed = (0..=u8::MAX).any(|byte| {
        states.transition(start, byte);
        states.has_error()
    });
    if has_failed { Err(complex()) } else { Ok(()) }
}
