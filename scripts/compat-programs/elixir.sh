command -v elixir >/dev/null || exit 127
cat > a.exs <<'T'
p = self()
for k <- 1..200, do: spawn_link(fn -> send(p, {k, Enum.reduce(1..200000, 0, fn i, s -> rem(s*31+i*k, 1000003) end)}) end)
r = for k <- 1..200, do: (receive do {^k, v} -> v end)
IO.puts(Enum.sum(r))
{:ok, a} = Agent.start_link(fn -> %{} end)
for i <- 1..60000, do: Agent.update(a, &Map.put(&1, rem(i, 100), i))
IO.inspect(Agent.get(a, &Enum.sum(Map.values(&1))))
Process.sleep(800)
:ets.new(:t, [:named_table, :public])
Task.await_many(for k <- 1..8, do: Task.async(fn -> for i <- 1..120000, do: :ets.insert(:t, {rem(i*k, 1000), i}) end))
IO.puts(:ets.info(:t, :size))
T
elixir a.exs
