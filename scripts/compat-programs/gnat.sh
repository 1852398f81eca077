command -v gnatmake >/dev/null || exit 127
cat > a.adb <<T
with Ada.Text_IO; use Ada.Text_IO;
procedure A is
  protected P is procedure Add(X: Long_Long_Integer); function Get return Long_Long_Integer; private S: Long_Long_Integer:=0; end P;
  protected body P is procedure Add(X: Long_Long_Integer) is begin S:=S+X; end; function Get return Long_Long_Integer is (S); end P;
begin
  for K in 1..10 loop
  declare
    task type W(N: Integer);
    task body W is S: Long_Long_Integer:=1; begin for I in 1..8_000_000 loop S:=(S*31+Long_Long_Integer(I*N)) mod 1000003; end loop; delay 0.05; P.Add(S); end W;
    A1: W(1); A2: W(2); A3: W(3);
  begin null; end;
  Put_Line(Long_Long_Integer'Image(P.Get)); Flush;
  end loop;
end A;
T
gnatmake -q -O2 a.adb && ./a
