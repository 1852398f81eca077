command -v coqc >/dev/null || exit 127
cat > a.v <<'P'
Require Import Arith Lia List ZArith.
Fixpoint fib n := match n with 0 => 0 | S m => match m with 0 => 1 | S k => fib k + fib m end end.
Eval vm_compute in (fib 25).
Theorem t : forall a b c d e : nat, a < b -> b < c -> c < d -> d < e -> 2*a + 3*b + c < 6*e. Proof. intros; lia. Qed.
Fixpoint ack m := match m with 0 => S | S k => fix f n := match n with 0 => ack k 1 | S j => ack k (f j) end end.
Eval vm_compute in (ack 3 6).
Open Scope Z_scope.
Theorem u : forall x y z w : Z, 3*x+5*y-2*z = 7 -> 2*x-y+4*z = 3 -> x+y+z+w=10 -> w-x >= -1000 \/ 5*w <= 0 \/ x > 1000. Proof. intros; lia. Qed.
Eval vm_compute in (Z.modulo (Z.pow 3 60000) 1000003).
Eval compute in (fib 19).
P
for k in 1 2; do coqc -q a.v; echo $?; done
