use proptest::prelude::*;

use super::*;

/// A hand-made BTF with the constructs that matter.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    fn new() -> Self {
        Self {
            strings: vec![0],
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        offset
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, body: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, info, size_or_type].iter().chain(body) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn int(&mut self, size: u32) -> u32 {
        self.add("int", KIND_INT << 24, size, &[size * 8])
    }

    fn container(&mut self, name: &str, kind: u32, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let words: Vec<u32> = members
            .iter()
            .flat_map(|(name, type_id, bits)| [self.name(name), *type_id, *bits])
            .collect();
        self.add(name, kind << 24 | members.len() as u32, size, &words)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int(4);
    let long = b.int(8);
    let pointer = b.add("", KIND_PTR << 24, long, &[]);
    let array = b.add("", KIND_ARRAY << 24, 0, &[pointer, int, 3]);
    let constant = b.add("", KIND_CONST << 24, long, &[]);
    let inner = b.container(
        "inner",
        KIND_STRUCT,
        16,
        &[("a", long, 0), ("b", constant, 64)],
    );
    let anonymous = b.container("", KIND_UNION, 8, &[("x", long, 0), ("y", int, 0)]);
    b.container(
        "outer",
        KIND_STRUCT,
        64,
        &[
            ("first", int, 0),
            ("", anonymous, 64),
            ("in", inner, 128),
            ("list", array, 256),
        ],
    );
    b.add("colour", KIND_ENUM << 24 | 2, 4, &[0, 0, 0, 0]);
    let red = b.name("red");
    b.add("shade", KIND_ENUM << 24 | 1, 4, &[red, 5]);
    let prototype = b.add(
        "",
        KIND_FUNC_PROTO << 24 | 3,
        0,
        &[0, long, 0, int, 0, pointer],
    );
    let to_prototype = b.add("", KIND_PTR << 24, prototype, &[]);
    b.add("btf_trace_thing", KIND_TYPEDEF << 24, to_prototype, &[]);
    b.add("bpf_iter_thing", KIND_FUNC << 24, prototype, &[]);
    b.add(
        "bits",
        1 << 31 | KIND_STRUCT << 24 | 2,
        8,
        &[red, int, 3 << 24, red, int, 32],
    );
    b.bytes()
}

fn place(btf: &Btf<'_>, container: &str, path: &str) -> Option<(u32, u32)> {
    btf.field(container, path)
        .map(|field| (field.offset, field.size))
}

#[test]
fn fields_are_found_through_anonymous_and_named_members() {
    let bytes = sample();
    let btf = Btf::parse(&bytes, |_| true).unwrap();
    assert_eq!(place(&btf, "outer", "first"), Some((0, 4)));
    assert_eq!(place(&btf, "outer", "x"), Some((8, 8)));
    assert_eq!(place(&btf, "outer", "y"), Some((8, 4)));
    assert_eq!(place(&btf, "outer", "in.b"), Some((24, 8)));
    assert_eq!(place(&btf, "outer", "list"), Some((32, 24)));
    assert_eq!(place(&btf, "outer", "in.c"), None);
    assert_eq!(place(&btf, "nothing", "x"), None);
}

#[test]
fn attach_points_keep_their_numbers_without_the_rest() {
    let bytes = sample();
    let whole = Btf::parse(&bytes, |_| true).unwrap();
    let excerpt = whole.attach_points();
    let few = Btf::parse(&excerpt, |_| true).unwrap();
    for name in ["btf_trace_thing", "bpf_iter_thing"] {
        assert!(whole.named.contains_key(name.as_bytes()));
        assert_eq!(
            few.named.get(name.as_bytes()),
            whole.named.get(name.as_bytes())
        );
    }
    assert!(few.has_function("bpf_iter_thing"));
    assert_eq!(few.named.len(), 2, "{:?}", few.named);
    assert!(
        Btf::parse(
            &Btf::parse(&bytes, |_| false).unwrap().attach_points(),
            |_| true
        )
        .is_ok()
    );
}

#[test]
fn a_bit_field_is_no_field_but_its_neighbour_is() {
    let bytes = sample();
    let btf = Btf::parse(&bytes, |_| true).unwrap();
    assert_eq!(place(&btf, "bits", "red"), Some((4, 4)));
}

#[test]
fn enumerators_functions_and_tracepoints_are_found() {
    let bytes = sample();
    let btf = Btf::parse(&bytes, |_| true).unwrap();
    assert_eq!(btf.enumerator("shade", "red"), Some(5));
    assert_eq!(btf.enumerator("shade", "green"), None);
    assert!(btf.has_function("bpf_iter_thing"));
    assert!(!btf.has_function("outer"));
    assert_eq!(btf.tracepoint_arguments("thing"), Some(2));
    assert_eq!(btf.tracepoint_arguments("other"), None);
}

#[test]
fn errors_name_what_is_wrong() {
    assert_eq!(
        Btf::parse(&[1, 2, 3, 4], |_| true).err(),
        Some(BtfError::Magic(0x0201))
    );
    let whole = sample();
    let cut = Btf::parse(&whole[..whole.len() - 1], |_| true).err();
    assert!(matches!(
        cut,
        Some(BtfError::Truncated {
            part: "the string section",
            ..
        })
    ));
    let mut odd = Builder::new();
    odd.add("odd", 30 << 24, 0, &[]);
    assert_eq!(
        Btf::parse(&odd.bytes(), |_| true).err(),
        Some(BtfError::UnknownKind { id: 1, kind: 30 })
    );
}

#[test]
fn a_loop_of_types_ends() {
    let mut b = Builder::new();
    b.add("loop", KIND_TYPEDEF << 24, 1, &[]);
    b.container("self", KIND_STRUCT, 8, &[("", 2, 0), ("field", 1, 0)]);
    let bytes = b.bytes();
    let btf = Btf::parse(&bytes, |_| true).unwrap();
    assert!(btf.field("self", "field").is_none());
}

/// Asks for everything the collector asks for.
fn exercise(bytes: &[u8]) {
    let _ = crate::bpf::layout::resolve(bytes);
    if let Ok(btf) = Btf::parse(bytes, |_| true) {
        for name in ["outer", "inner", "bits", "shade"] {
            let _ = btf.field(name, "in.b");
            let _ = btf.field(name, "red");
            let _ = btf.enumerator(name, "red");
        }
        let _ = btf.tracepoint_arguments("thing");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        exercise(&bytes);
    }

    #[test]
    fn any_damage_is_survived(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut: prop::sample::Index,
    ) {
        let mut bytes = sample();
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
        exercise(&bytes[..cut.index(bytes.len())]);
    }
}
