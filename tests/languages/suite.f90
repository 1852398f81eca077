! The cases of suite.c in Fortran.
module cases
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  use gridcpr
  implicit none

  integer(int64), target :: step
  real(real64), target :: field(1000), grid(3, 4)
  real(real32), target :: spread_out(13)
  integer(int32), target :: counts(7)
  integer(int32), target :: big(3*262144)
  logical, volatile :: told = .false.

  interface
    function usleep(microseconds) bind(c)
      import :: c_int
      integer(c_int), value :: microseconds
      integer(c_int) :: usleep
    end function
  end interface

contains

  subroutine fill(seed)
    integer, intent(in) :: seed
    integer :: i, j
    step = seed
    field = [(seed + (i - 1)*0.5_real64, i=1, 1000)]
    do j = 1, 4
      do i = 1, 3
        grid(i, j) = seed + 10*(i - 1) + (j - 1)
      end do
    end do
    spread_out = -1
    spread_out(1::3) = [(real(seed + i, real32), i=0, 4)]
    counts = [(seed*i, i=0, 6)]
  end subroutine

  subroutine protect_all(app)
    type(checkpoint), intent(in) :: app
    call app%protect('step', step)
    call app%protect('field', field)
    call app%protect('grid', grid)
    call app%protect('spread', spread_out(1::3))
    call app%protect('counts', counts)
  end subroutine

  subroutine write_one(base, seed)
    character(len=*), intent(in) :: base
    integer, intent(in) :: seed
    type(checkpoint) :: app
    call app%open(base, 'suite')
    call fill(seed)
    call protect_all(app)
    call app%set_attribute('writer', 'fortran')
    print '(i0)', app%write()
    call app%close()
  end subroutine

  subroutine read_one(base, seed)
    character(len=*), intent(in) :: base
    integer, intent(in) :: seed
    type(checkpoint) :: app
    integer(int64) :: generation, found_step
    real(real64) :: found_field(1000), found_grid(3, 4)
    real(real32) :: found_spread(13)
    integer(int32) :: found_counts(7)
    call app%open(base, 'suite')
    call fill(-1)
    spread_out = -1
    call protect_all(app)
    generation = app%restore()
    found_step = step
    found_field = field
    found_grid = grid
    found_spread = spread_out
    found_counts = counts
    call fill(seed)
    if (found_step /= step .or. any(found_field /= field) .or. any(found_grid /= grid) .or. &
        any(found_spread /= spread_out) .or. any(found_counts /= counts)) error stop 'suite: what was read differs'
    print '(i0, 1x, a)', generation, app%attribute(generation, 'writer')
    call app%close()
  end subroutine

  subroutine list(what, app)
    character(len=*), intent(in) :: what
    type(checkpoint), intent(in) :: app
    type(gridcpr_generation), allocatable :: found(:)
    integer :: i
    found = app%generations()
    write (*, '(2a)', advance='no') what, ':'
    do i = 1, size(found)
      write (*, '(1x, i0, 2("/", i0))', advance='no') found(i)%generation, found(i)%state, found(i)%needs
    end do
    print '()'
  end subroutine

  subroutine increments(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app
    integer :: i, status
    integer(int64) :: generation
    call app%open(base, 'increments', sequence='FIi')
    big = 0
    call app%protect('big', big)
    do i = 0, 2
      big(i*262144 + 1) = i + 1
      generation = app%write()
    end do
    call list('increments', app)
    big = 0
    generation = app%restore()
    print '(a, 3(1x, i0))', 'restored:', big(1), big(262145), big(524289)
    call app%free(1_int64, status)
    print '(a, i0)', 'needed: ', status
    call app%close()
  end subroutine

  subroutine retention(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app
    integer(int64) :: generation
    integer :: i
    call app%open(base, 'keep', keep=2)
    call app%protect('step', step)
    do i = 1, 4
      generation = app%write()
    end do
    call list('kept', app)
    call app%close()
    call app%open(base, 'expire', lifetime=1)
    call app%protect('step', step)
    generation = app%write()
    i = usleep(600000_c_int)
    i = usleep(600000_c_int)
    generation = app%write()
    call list('lives', app)
    call app%close()
  end subroutine

  subroutine metadata(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app
    type(gridcpr_generation), allocatable :: found(:)
    integer(int64) :: generation, piece(1)
    call app%open(base, 'metadata')
    call app%protect('step', step)
    do step = 1, 3
      call app%set_attribute('phase', merge('spin-up', 'run    ', step == 2))
      generation = app%write()
    end do
    found = app%generations('phase', 'run')
    print '(a, i0, a, i0)', 'found: ', size(found), ', the last ', found(size(found))%generation
    call app%update(3_int64, 'phase', 'done', 60)
    found = app%generations()
    print '(3a, i0)', 'updated: ', app%attribute(3_int64, 'phase'), ' ', found(3)%lifetime
    call app%read(2_int64, 0, 'step', 1_int64, piece)
    print '(a, i0)', 'read: ', piece
    call app%validate(2_int64)
    call app%free(2_int64)
    call list('freed', app)
    call app%transfer(3_int64, base//'/there')
    call app%forget()
    call list('forgotten', app)
    call app%close()
    call app%open(base//'/there', 'metadata')
    call app%protect('step', step)
    step = 0
    generation = app%restore()
    print '(a, i0)', 'transferred: ', step
    call app%close()
  end subroutine

  subroutine ranks(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: one, two
    integer(int64) :: generation
    call one%open(base, 'ranks', rank=0, ranks=2, session='a')
    call two%open(base, 'ranks', rank=1, ranks=2, session='a')
    call one%protect('step', step)
    call two%protect('step', step)
    step = 10
    generation = one%write()
    call list('half', one)
    step = 11
    generation = two%write()
    call list('whole', one)
    generation = one%restore()
    print '(a, i0)', 'rank 0: ', step
    generation = two%restore()
    print '(a, i0)', 'rank 1: ', step
    call one%close()
    call two%close()
  end subroutine

  subroutine background(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app
    integer(int64) :: generation, restored, done, total
    call app%open(base, 'background')
    call app%protect('step', step)
    call app%prepare()
    step = 7
    call app%write_begin()
    step = 8
    generation = app%wait()
    call app%progress(done, total)
    restored = app%restore()
    print '(a, 4(i0, a), i0)', 'background: ', generation, ' ', 0, ' ', done, ' of ', total, ', ', step
    call app%close()
  end subroutine

  subroutine files(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app
    integer(int64) :: generation
    integer :: unit
    character(len=32) :: text
    call app%open(base, 'files')
    call app%protect('step', step)
    open (newunit=unit, file=app%route('notes.txt'), action='write', status='new')
    write (unit, '(a)') 'of its own'
    close (unit)
    generation = app%write()
    open (newunit=unit, file=app%file(generation, 'notes.txt'), action='read', status='old')
    read (unit, '(a)') text
    close (unit)
    print '(2a)', 'file: ', trim(text)
    call app%close()
  end subroutine

  subroutine wrong(base)
    character(len=*), intent(in) :: base
    type(checkpoint) :: app, again
    integer(int32), target :: narrow
    integer(int64) :: generation
    integer :: status
    call app%open(base, 'wrong')
    call app%protect('step', step)
    print '(a, i0)', 'none: ', app%restore()
    generation = app%write()
    call app%protect('step', narrow)
    generation = app%restore(status=status)
    print '(a, i0)', 'another type: ', status
    call app%validate(9_int64, status)
    print '(a, i0)', 'no such generation: ', status
    call again%open(base, 'wrong', status=status)
    print '(a, i0)', 'open twice: ', status
    call app%close()
  end subroutine

  function callback(notice, data) bind(c) result(verdict)
    type(gridcpr_notice), intent(in) :: notice
    type(c_ptr), value :: data
    integer(c_int) :: verdict
    character(len=8), parameter :: names(4) = ['before  ', 'continue', 'restart ', 'told    ']
    character(len=:), allocatable :: reason
    reason = gridcpr_reason(notice)
    if (len(reason) > 0 .and. .not. c_associated(data)) reason = ': '//reason
    print '(2a)', trim(names(notice%event)), reason
    flush (6)
    if (notice%event == gridcpr_told) told = .true.
    verdict = gridcpr_ready
  end function

  subroutine job()
    integer :: number, slept
    logical :: again
    number = gridcpr_register(callback)
    call gridcpr_enter()
    call gridcpr_enter()
    call gridcpr_leave()
    call gridcpr_leave()
    call gridcpr_file_policy('*.txt', 'nocheck,nottruncate')
    again = gridcpr_checkpoint_job()
    call gridcpr_enter() ! Not before the callbacks have returned.
    if (again) then
      print '(a, i0, 1x, i0, 1x, a, 1x, a)', 'restarted ', gridcpr_restarted(), gridcpr_restart_generation(), &
        gridcpr_restart_image(), gridcpr_restart_job()
    else
      print '(a, i0, 1x, i0, a, a)', 'continued ', gridcpr_restarted(), gridcpr_restart_generation(), gridcpr_restart_image(), &
        gridcpr_restart_job()
    end if
    flush (6)
    call gridcpr_leave()
    do while (.not. told)
      slept = usleep(10000_c_int)
    end do
    call gridcpr_unregister(number)
    print '(a)', 'end'
  end subroutine
end module

program suite
  use cases
  implicit none
  character(len=4096) :: what, base, number
  integer :: seed
  call get_command_argument(1, what)
  call get_command_argument(2, base)
  call get_command_argument(3, number)
  if (command_argument_count() == 3) read (number, *) seed
  select case (what)
  case ('write')
    call write_one(trim(base), seed)
  case ('read')
    call read_one(trim(base), seed)
  case ('cases')
    call increments(trim(base))
    call retention(trim(base))
    call metadata(trim(base))
    call ranks(trim(base))
    call background(trim(base))
    call files(trim(base))
    call wrong(trim(base))
  case ('job')
    call job()
  case default
    error stop 64
  end select
end program
