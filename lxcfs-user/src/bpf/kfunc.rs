//! Calls of kernel functions in the object: they go by a function's number in the type
//! information of the running kernel. Pure.

use lxcfs_common::bpf::KFUNC_PLACEHOLDER;

/// `BPF_JMP | BPF_CALL`
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the half of the byte that names the source register.
const OF_KERNEL_FUNCTION: u8 = 2 << 4;
const INSTRUCTION: usize = 8;

/// Puts the numbers of `bpf_iter_task_new`, `_next` and `_destroy` in the place of those that
/// stand for them. Returns how many calls there were.
pub(super) fn fill_in(object: &mut [u8], functions: [u32; 3]) -> usize {
    let mut calls = 0;
    // Sections with programs are aligned, so every instruction is.
    for instruction in object.chunks_exact_mut(INSTRUCTION) {
        let [code, registers, 0, 0, number @ ..] = instruction else {
            continue;
        };
        let Ok(four) = <[u8; 4]>::try_from(&*number) else {
            continue;
        };
        let index = u32::from_le_bytes(four).wrapping_sub(KFUNC_PLACEHOLDER);
        if (*code, *registers) == (CALL, 0)
            && let Some(function) = functions.get(index as usize)
        {
            *registers = OF_KERNEL_FUNCTION;
            number.copy_from_slice(&function.to_le_bytes());
            calls += 1;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_placeholders_are_filled_in_and_nothing_else_is_touched() {
        let call = |registers, number: u32| {
            let mut bytes = vec![CALL, registers, 0, 0];
            bytes.extend(number.to_le_bytes());
            bytes
        };
        let others = [
            call(0, 1),
            call(1 << 4, KFUNC_PLACEHOLDER),
            call(0, KFUNC_PLACEHOLDER + 3),
            call(0, KFUNC_PLACEHOLDER - 1),
            vec![0xb7, 0, 0, 0, 0, 0, 0x5f, 0x7c],
        ]
        .concat();
        let mut object = [
            call(0, KFUNC_PLACEHOLDER),
            others.clone(),
            call(0, KFUNC_PLACEHOLDER + 2),
            // A file may end anywhere.
            vec![CALL, 0, 0],
        ]
        .concat();
        assert_eq!(fill_in(&mut object, [70_000, 70_001, 70_002]), 2);
        let filled = [
            call(OF_KERNEL_FUNCTION, 70_000),
            others,
            call(OF_KERNEL_FUNCTION, 70_002),
            vec![CALL, 0, 0],
        ]
        .concat();
        assert_eq!(object, filled);
        assert_eq!(fill_in(&mut object, [1, 2, 3]), 0);
    }

    #[test]
    fn the_kept_object_has_calls_to_fill_in() {
        let mut object = super::super::load::OBJECT.to_vec();
        assert!(fill_in(&mut object, [1, 2, 3]) >= 3);
    }
}
