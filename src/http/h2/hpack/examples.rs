//! The examples of RFC 7541, to the letter: appendix C.2 to C.6.

use super::{DecodeError, Decoder};

const DATE: &str = "date: Mon, 21 Oct 2013 20:13:21 GMT";
const LATER: &str = "date: Mon, 21 Oct 2013 20:13:22 GMT";
const COOKIE: &str = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(char::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut fields = Vec::new();
    decoder.decode(block, |name, value| {
        fields.push(format!("{}: {}", name.escape_ascii(), value.escape_ascii()));
    })?;
    Ok(fields)
}

/// What the dynamic table holds.
fn table(decoder: &mut Decoder) -> Vec<String> {
    (62..127).map_while(|index| fields(decoder, &[0x80 | index]).ok()).flatten().collect()
}

/// Decodes a block to these lines, which leaves those in the table.
fn check(decoder: &mut Decoder, block: &str, lines: &[&str], in_table: &[&str]) {
    assert_eq!(fields(decoder, &bytes(block)).unwrap(), lines, "{block}");
    assert_eq!(table(decoder), in_table, "{block}");
}

#[test]
fn c_2_fields_one_by_one() {
    let one = |block, line, in_table: &[&str]| check(&mut Decoder::new(), block, &[line], in_table);
    one(
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "custom-key: custom-header",
        &["custom-key: custom-header"],
    );
    one("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", &[]);
    one("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", &[]);
    one("82", ":method: GET", &[]);
}

fn check_requests(blocks: [&str; 3]) {
    let mut decoder = Decoder::new();
    let authority = ":authority: www.example.com";
    let get = [":method: GET", ":scheme: http", ":path: /", authority];
    check(&mut decoder, blocks[0], &get, &[authority]);
    let no_cache = "cache-control: no-cache";
    let lines = [&get[..], &[no_cache]].concat();
    check(&mut decoder, blocks[1], &lines, &[no_cache, authority]);
    let custom = "custom-key: custom-value";
    let lines = [":method: GET", ":scheme: https", ":path: /index.html", authority, custom];
    check(&mut decoder, blocks[2], &lines, &[custom, no_cache, authority]);
}

#[test]
fn c_3_requests_without_huffman() {
    check_requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
}

#[test]
fn c_4_requests_with_huffman() {
    check_requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
}

fn check_responses(blocks: [&str; 3]) {
    let mut decoder = Decoder::new();
    // The examples have a table of 256 bytes from the start.
    check(&mut decoder, "3fe1 01", &[], &[]);
    let (location, private) = ("location: https://www.example.com", "cache-control: private");
    let lines = [":status: 302", private, DATE, location];
    check(&mut decoder, blocks[0], &lines, &[location, DATE, private, ":status: 302"]);
    let lines = [":status: 307", private, DATE, location];
    check(&mut decoder, blocks[1], &lines, &[":status: 307", location, DATE, private]);
    let gzip = "content-encoding: gzip";
    let lines = [":status: 200", private, LATER, location, gzip, COOKIE];
    check(&mut decoder, blocks[2], &lines, &[COOKIE, gzip, LATER]);
}

#[test]
fn c_5_responses_without_huffman() {
    check_responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
         2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
         6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
         54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
         5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
         3d31",
    ]);
}

#[test]
fn c_6_responses_with_huffman() {
    check_responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
         77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
         9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
}
