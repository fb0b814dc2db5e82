/* The first instructions of a machine (tests/bare_metal.c): from the reset vector to long mode with 4 GB mapped one to one. */
    .section .start, "ax"
    .code16
start:
    cli
    lgdtl   %cs:(table_at - start)      /* the code segment begins where this ROM does */
    mov     %cr0, %eax
    or      $1, %al
    mov     %eax, %cr0
    ljmpl   $0x08, $flat
    .code32
flat:
    mov     $0x18, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    cld
    mov     $0x1000, %edi               /* six tables: pages of 2 MB */
    xor     %eax, %eax
    mov     $0x1800, %ecx
    rep stosl
    movl    $0x2003, 0x1000
    movl    $0x3003, 0x2000
    movl    $0x4003, 0x2008
    movl    $0x5003, 0x2010
    movl    $0x6003, 0x2018
    mov     $0x83, %eax
    mov     $0x3000, %edi
1:  mov     %eax, (%edi)
    add     $8, %edi
    add     $0x200000, %eax
    jnc     1b
    mov     $0x620, %eax                /* CR4: PAE, OSFXSR, OSXMMEXCPT */
    mov     %eax, %cr4
    mov     $0x1000, %eax
    mov     %eax, %cr3
    mov     $0xc0000080, %ecx           /* EFER: long mode, syscall */
    rdmsr
    or      $0x101, %eax
    wrmsr
    mov     $0x80000023, %eax           /* CR0: paging, numeric errors, monitor, protection */
    mov     %eax, %cr0
    ljmp    $0x10, $long
    .code64
long:
    mov     $0x8ff0, %esp
    call    boot
    hlt
    .balign 8
table:
    .quad   0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
table_at:
    .word   31
    .long   table

    .text
    .globl  system_call, enter
/* A call comes from this same level, on the caller's stack, of which 128 bytes below its end may be in use. */
system_call:
    lea     -128(%rsp), %rsp
    push    %rcx
    push    %rdi
    push    %rsi
    push    %rdx
    push    %r8
    push    %r9
    push    %r10
    push    %rbp
    mov     %rsp, %rbp
    and     $-16, %rsp
    mov     %rdx, %rcx
    mov     %rsi, %rdx
    mov     %rdi, %rsi
    mov     %rax, %rdi
    call    serve                       /* (number, first, second, third) */
    mov     %rbp, %rsp
    pop     %rbp
    pop     %r10
    pop     %r9
    pop     %r8
    pop     %rdx
    pop     %rsi
    pop     %rdi
    pop     %rcx
    lea     128(%rsp), %rsp
    jmp     *%rcx
/* (first instruction, stack) */
enter:
    mov     %rsi, %rsp
    xor     %edx, %edx
    xor     %ebp, %ebp
    jmp     *%rdi

    .section .reset, "ax"
    .byte   0xe9, 0x0d, 0x00            /* jmp start, around the end of 64 KB */
    .section .note.GNU-stack, "", @progbits
